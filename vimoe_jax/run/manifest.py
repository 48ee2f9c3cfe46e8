"""Sizes and checksums of a checkpoint's files: written with it, compared before it is read.

The manifest lies in the checkpoint, so that both appear in one rename. A file system that loses or
changes bytes is noticed whatever the file is for, also where a reader of the arrays would not look.
"""

from __future__ import annotations

import json
import os
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from vimoe_jax.base.files import write_text

NAME = "manifest.json"

_BLOCK = 1 << 22
# Orbax completes these two after the manifest is written: the first by the time of the commit, the
# second altogether.
_METADATA, _COMMITTED = "_CHECKPOINT_METADATA", "commit_success.txt"
_COMMIT_TIME = "commit_timestamp_nsecs"


class Damaged(Exception):
    """A file is missing or is not what was written; the message is one line that names it."""


def write(folder: Path) -> None:
    """Writes the manifest of everything below `folder`, through to the disk."""
    names = sorted(
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.is_file() and path.relative_to(folder).as_posix() not in (NAME, _COMMITTED)
    )
    with _pool() as pool:
        files = dict(zip(names, pool.map(lambda n: _measure(folder / n), names), strict=True))
    whole = json.dumps({"files": files, "crc32": _of_json(files)}, indent=1)
    write_text(folder / NAME, whole, fsync=True)


def check(folder: Path, part: int = 0, parts: int = 1) -> bool:
    """Compares the files below `folder` with its manifest.

    Args:
      folder: of the checkpoint.
      part: of the files, sorted by name, only those at `part`, `part + parts`, …: several hosts
        read each file once.
      parts: of how many.

    Returns:
      Whether there is a manifest: checkpoints of earlier versions have none.

    Raises:
      Damaged: a file differs.
    """
    path = folder / NAME
    if not path.exists():
        return False
    files = _read(path)
    mine = sorted(files)[part::parts]
    with _pool() as pool:
        faults = pool.map(lambda name: _fault(folder, name, files[name]), mine)
        if first := next((fault for fault in faults if fault), None):
            raise Damaged(first)
    return True


def _read(path: Path) -> dict[str, list[int]]:
    try:
        value = json.loads(path.read_bytes())
        files = value["files"]
        if _of_json(files) == value["crc32"]:
            return files
    except (ValueError, KeyError, TypeError):
        pass
    raise Damaged(f"{NAME} is damaged")


def _fault(folder: Path, name: str, written: list[int]) -> str | None:
    try:
        size, crc = _measure(folder / name)
    except FileNotFoundError:
        return f"{name} is missing"
    except (OSError, ValueError) as e:
        return f"{name} cannot be read ({e})"
    if size != written[0]:
        return f"{name} has {size} bytes instead of {written[0]}"
    return None if crc == written[1] else f"{name} has changed since it was written"


def _measure(path: Path) -> tuple[int, int]:
    """Bytes and CRC-32; for Orbax's metadata, of their meaning but for the time of the commit."""
    if path.name == _METADATA:
        value = json.loads(path.read_bytes())
        if not isinstance(value, dict):
            raise ValueError("not Orbax's metadata")
        value.pop(_COMMIT_TIME, None)
        return 0, _of_json(value)
    size, crc = 0, 0
    with open(path, "rb") as f:
        while block := f.read(_BLOCK):
            size, crc = size + len(block), zlib.crc32(block, crc)
    return size, crc


def _of_json(value: Any) -> int:
    return zlib.crc32(json.dumps(value, sort_keys=True).encode())


def _pool() -> ThreadPoolExecutor:
    # zlib works without the GIL; on network storage most threads wait.
    return ThreadPoolExecutor(min(16, 2 * (os.cpu_count() or 1)), thread_name_prefix="manifest")
