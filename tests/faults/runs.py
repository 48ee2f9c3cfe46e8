"""Runs of the tiny configuration in processes of their own, and what they left."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parent.parent.parent
TINY = ROOT / "tests/tiny.py"


def environment(data: Path, cache: Path, devices: int = 1) -> dict[str, str]:
    """For runs on ViScenes prepared in `data`, compiled programs kept in `cache`."""
    return os.environ | {
        "VIMOE_TEST_DATA": str(data),
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "PYTHONPATH": str(ROOT),
    }


def start(workdir: Path, env: dict[str, str], log: Path, *more: str) -> subprocess.Popen:
    """Starts the main command; what it prints goes to `log`."""
    call = [sys.executable, "-m", "vimoe_jax.main", f"--config={TINY}", f"--workdir={workdir}"]
    with open(log, "w") as out:
        return subprocess.Popen([*call, *more], env=env, stdout=out, stderr=out)


def finish(workdir: Path, env: dict[str, str], *more: str) -> None:
    """Runs the main command to its end."""
    log = workdir.with_suffix(".log")
    if start(workdir, env, log, *more).wait():
        raise AssertionError(log.read_text()[-2000:])


def steps(workdir: Path) -> list[int]:
    """Of the whole checkpoints, ascending."""
    folder = workdir / "checkpoints"
    names = [p.name for p in folder.iterdir()] if folder.exists() else []
    return sorted(int(n) for n in names if n.isdigit())


def half_written(workdir: Path) -> bool:
    """Whether a save was cut off."""
    return any((workdir / "checkpoints").glob("*.orbax-checkpoint-tmp*"))


def state(workdir: Path, step: int) -> dict[str, np.ndarray]:
    """All arrays of a checkpoint by path."""
    import jax
    import orbax.checkpoint as ocp

    with ocp.PyTreeCheckpointer() as reader:
        tree = reader.restore((workdir / "checkpoints" / str(step) / "state").absolute())
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}


def losses(workdir: Path) -> list[tuple[int, str, float]]:
    """What was logged that does not depend on the clock."""
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    keep = ("train/loss", "train/aux_loss", "train/grad_norm", "val/loss")
    return [(row["step"], name, row[name]) for row in rows for name in keep if name in row]


def differences(a: Path, b: Path, step: int) -> list[str]:
    """Where two runs' final states or logs differ; nothing if they are the same to the bit."""
    left, right = state(a, step), state(b, step)
    found = sorted(left.keys() ^ right.keys())
    found += [n for n in left.keys() & right.keys() if left[n].tobytes() != right[n].tobytes()]
    return found + (["metrics.jsonl"] if losses(a) != losses(b) else [])
