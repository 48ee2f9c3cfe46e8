"""What XLA compiled once, kept on disk for the next process."""

from __future__ import annotations

import hashlib
import os
import platform
from pathlib import Path

import jax

from vimoe_jax.base.host import cache_folder

_VARIABLE = "JAX_COMPILATION_CACHE_DIR"
_SECONDS = 0.5  # of compiling, from which on a program is kept


def keep_compiled() -> None:
    """Turns JAX's persistent compilation cache on, in the package's cache folder.

    Nothing happens where JAX has a folder already (`JAX_COMPILATION_CACHE_DIR`), or where that
    variable is empty: who sets it decides. A folder that cannot be written costs nothing.
    """
    if jax.config.values["jax_compilation_cache_dir"] or _VARIABLE in os.environ:
        return
    jax.config.update("jax_compilation_cache_dir", str(cache_folder() / f"xla-{_machine()}"))
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", _SECONDS)


def _machine() -> str:
    """The devices' type; of CPUs also their instructions, which programs are compiled for.

    JAX's keys leave the latter out, and machines of a cluster may share a home folder.
    """
    device = jax.devices()[0]
    if device.platform != "cpu":
        return device.device_kind.lower().replace(" ", "-").replace("/", "-")
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        flags = next(line for line in lines if line.startswith(("flags", "Features")))
    except (OSError, StopIteration):
        flags = platform.processor()
    return f"cpu-{hashlib.sha256(flags.encode()).hexdigest()[:12]}"
