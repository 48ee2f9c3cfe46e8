"""JSON that others wrote."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from vimoe_jax.base.errors import UserError


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


def write_json(path: Path, value: Any) -> None:
    """Writes whole or not at all."""
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(temporary, path)
