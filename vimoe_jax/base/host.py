"""The host: its cache folder, and its memory, kept and reused where XLA computes on the CPU.

XLA on CPU takes its buffers from malloc and gives them back at every step. glibc returns blocks of
that size to the system at once, so that each step begins with thousands of page faults; the zeroing
alone can take longer than a small model's products (`benchmarks/moe_layer.py --shapes=small`).
"""

from __future__ import annotations

import ctypes
import os
import re
import sys
from pathlib import Path

# <malloc.h>
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4
_MADV_HUGEPAGE = 14  # <sys/mman.h>
_HEAP = 1 << 30  # bytes of address space set aside; pages are taken when first written


def cache_folder() -> Path:
    """Where findings about this machine are kept: `$VIMOE_CACHE`, else `~/.cache/vimoe_jax`."""
    return Path(os.environ.get("VIMOE_CACHE") or Path.home() / ".cache" / "vimoe_jax")


def keep_memory() -> bool:
    """Makes malloc keep what is freed, and use large pages; for processes that compute on the CPU.

    Nothing happens where the C library is not glibc, or where GLIBC_TUNABLES already says how much
    may be mapped.

    Returns:
      Whether anything was changed.
    """
    if sys.platform != "linux" or "mmap_max" in os.environ.get("GLIBC_TUNABLES", ""):
        return False
    libc = ctypes.CDLL(None, use_errno=True)
    if not hasattr(libc, "gnu_get_libc_version"):
        return False
    libc.mallopt(_M_MMAP_MAX, 0)  # blocks come from the heap, however large,
    libc.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)  # and stay there when they are freed
    libc.mallopt(_M_TOP_PAD, 1 << 26)
    libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    libc.free.argtypes = [ctypes.c_void_p]
    libc.free(libc.malloc(_HEAP))
    _use_large_pages(libc)
    return True


def _use_large_pages(libc: ctypes.CDLL) -> None:
    """Asks for large pages on the heap, where the system leaves that to the process."""
    try:
        maps = Path("/proc/self/maps").read_text()
    except OSError:
        return
    heap = re.search(r"^([0-9a-f]+)-([0-9a-f]+) .*\[heap\]$", maps, re.MULTILINE)
    if heap:
        start, end = (int(address, 16) for address in heap.groups())
        libc.madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), _MADV_HUGEPAGE)
