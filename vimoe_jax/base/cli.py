"""The commands' common options: `--name=value` and `--config.FIELD=VALUE`."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

from vimoe_jax.base.errors import UserError


def parse(
    argv: Sequence[str], names: Sequence[str]
) -> tuple[dict[str, str], list[tuple[str, str]]]:
    """Splits a command line into options and config overrides.

    Both `--name=value` and `--name value` are understood.

    Returns:
      Options by name; (dotted field, text) of each `--config.FIELD=VALUE`, in order.

    Raises:
      UserError: an option that does not exist (with the nearest that does), or has no value.
    """
    options: dict[str, str] = {}
    overrides: list[tuple[str, str]] = []
    rest = list(argv)
    while rest:
        word = rest.pop(0)
        if not word.startswith("--"):
            raise UserError(f"{word}: not an option; options look like --name=value")
        name, equals, value = word[2:].partition("=")
        is_field = name.startswith("config.")
        if not is_field and name not in names:
            near = difflib.get_close_matches(name, names, n=1)
            raise UserError(
                f"--{name}: no such option" + (f" (did you mean --{near[0]}?)" if near else "")
            )
        if not equals:
            if not rest:
                raise UserError(f"--{name}: needs a value")
            value = rest.pop(0)
        if is_field:
            overrides.append((name.removeprefix("config."), value))
        else:
            options[name] = value
    return options, overrides
