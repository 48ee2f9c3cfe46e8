"""Values from texts: of options and of environment variables.

A parser takes a text and returns its value; it raises ValueError with what the text must be ("must
be a whole number"), and `parse` makes of that a `UserError` that names the option.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from vimoe_jax.base.errors import UserError
from vimoe_jax.base.schema import Check

Parser = Callable[[str], Any]


def whole(text: str) -> int:
    """Parses a whole number, 0 or more, of ASCII digits."""
    if not re.fullmatch("[0-9]{1,18}", text):
        raise ValueError("must be a whole number")
    return int(text)


def integer(text: str) -> int:
    """Parses a whole number of ASCII digits that may be negative."""
    if not re.fullmatch("-?[0-9]{1,18}", text):
        raise ValueError("must be a whole number")
    return int(text)


def real(text: str) -> float:
    """Parses a finite number in ASCII: 3, -0.5, 1e-3."""
    if not re.fullmatch(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?", text):
        raise ValueError("must be a number")
    if not math.isfinite(float(text)):
        raise ValueError("must be a finite number")
    return float(text)


def boolean(text: str) -> bool:
    """Parses true or false, in any case."""
    if text.lower() not in ("true", "false"):
        raise ValueError("must be true or false")
    return text.lower() == "true"


def path(text: str) -> Path:
    """Parses a path, which need not exist."""
    if not text:
        raise ValueError("must be a path")
    return Path(text)


def paths(text: str) -> tuple[Path, ...]:
    """Parses paths with commas between them."""
    found = tuple(Path(part) for part in text.split(",") if part)
    if not found:
        raise ValueError("must be a path, or several with commas between them")
    return found


def one_of(*choices: str) -> Parser:
    """Parses one of some words; what it must be names the nearest."""

    def parser(text: str) -> str:
        if text not in choices:
            near = difflib.get_close_matches(text, choices, n=1, cutoff=0.5)
            hint = f" (did you mean {near[0]}?)" if near else ""
            raise ValueError(f"must be one of {', '.join(choices)}{hint}")
        return text

    return parser


def parse(where: str, parser: Parser, text: str, checks: Sequence[Check] = ()) -> Any:
    """The value of a text.

    Args:
      where: what an error names: "--step", or an environment variable.
      parser: as above.
      text: the text.
      checks: what the value must fulfil beyond.

    Raises:
      UserError: the parser refuses the text, or a check the value.
    """
    try:
        value = parser(text)
    except ValueError as e:
        raise UserError(f"{where}: {e}, not {text!r}") from None
    for check in checks:
        if complaint := check(value):
            raise UserError(f"{where}: {complaint}, not {text!r}")
    return value
