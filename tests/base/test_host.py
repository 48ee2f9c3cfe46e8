"""Memory that is kept: page faults are counted in a process of their own."""

import subprocess
import sys

import pytest

_COUNT = """
import ctypes, resource, sys
from vimoe_jax.base import host
changed = host.keep_memory() if sys.argv[1] == "keep" else False
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
libc.free.argtypes = [ctypes.c_void_p]
size = 48 << 20
def use():
    block = libc.malloc(size)
    ctypes.memset(block, 1, size)
    libc.free(block)
use()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    use()
print(changed, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(how: str, **env: str) -> tuple[bool, int]:
    done = subprocess.run(
        [sys.executable, "-c", _COUNT, how], capture_output=True, text=True, check=True, env=env
    )
    changed, count = done.stdout.split()
    return changed == "True", int(count)


@pytest.mark.skipif(sys.platform != "linux", reason="glibc only")
def test_a_freed_block_is_used_again_without_page_faults():
    changed, kept = faults("keep")
    if not changed:
        pytest.skip("no glibc")
    assert kept < 50
    assert faults("leave")[1] > 1000


@pytest.mark.skipif(sys.platform != "linux", reason="glibc only")
def test_what_the_environment_says_stands():
    assert not faults("keep", GLIBC_TUNABLES="glibc.malloc.mmap_max=65536")[0]
