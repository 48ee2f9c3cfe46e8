"""Shared set-up: eight simulated CPU devices, checked shapes, kept programs, real data if there."""

import os
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
)
# Programs compiled by an earlier run, or by another process of this one; processes that tests start
# inherit it. `make clean` removes it.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(__file__).parent.parent / ".cache/jax"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "0")

import pytest

from tests import typed

ROOT = Path(__file__).parent.parent
typed.install()


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real datasets, or a skip that says why."""
    path = Path(os.environ.get("VIMOE_REAL_DATA", ROOT / "../shared/data")).resolve()
    if not path.is_dir():
        pytest.skip(f"no real data at {path}; VIMOE_REAL_DATA names the folder")
    return path


@pytest.fixture(scope="session")
def viscenes_dir(tmp_path_factory) -> Path:
    """The tiny variant of ViScenes, prepared once per test process."""
    from vimoe_jax.datasets import viscenes

    path = tmp_path_factory.mktemp("data")
    viscenes.prepare(path, "tiny", progress=False)
    os.environ["VIMOE_TEST_DATA"] = str(path)
    return path
