"""What was found out about a device once and holds for the next processes, in small JSON files."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import jax

from vimoe_jax.base import files
from vimoe_jax.base.errors import UserError
from vimoe_jax.base.host import cache_folder


def path(kind: str) -> Path:
    """The file of a kind for this device, in `$VIMOE_CACHE` or `~/.cache/vimoe_jax`."""
    device = jax.devices()[0].device_kind.lower().replace(" ", "-").replace("/", "-")
    return cache_folder() / f"{kind}-{device}.json"


def read(file: Path) -> dict[str, Any]:
    """The entries of a file; none if it is missing or damaged."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def add(file: Path, key: str, value: Any) -> None:
    """Adds an entry, replacing the file whole: a process beside this one never reads half of it."""
    entries = {**read(file), key: value}
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        files.write_json(file, dict(sorted(entries.items())))
    except (OSError, UserError):
        pass  # without a writable cache, the next process finds out again


T = TypeVar("T")


def call_outside_traces(f: Callable[..., T], *args: Any) -> T:
    """Calls `f` where nothing is being traced: traces belong to threads, so in a thread of its own.

    Kernels cannot be built under `jax.ensure_compile_time_eval`: it hides their axis names.
    """
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(f, *args).result()
