"""JSON that others wrote."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from vimoe_jax.errors import UserError


def read_object(path: Path, *, optional: bool = False) -> dict[str, Any]:
    """A file's JSON object; {} for an optional file that is not there.

    Raises:
      UserError: it is missing, broken or no object.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as e:
        if optional and isinstance(e, FileNotFoundError):
            return {}
        raise UserError(f"{path}: {e.strerror}") from None
    except (ValueError, RecursionError) as e:
        raise UserError(f"{path}: not JSON: {e}") from None
    if not isinstance(value, dict):
        raise UserError(f"{path}: not a JSON object")
    return value
