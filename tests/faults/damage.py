"""Damages the newest of two checkpoints at random places and reads what is left.

python -m tests.faults.damage --count=100 --seed=0

Of each damage one of two things must come: the newest checkpoint is read and every bit is as it was
written, or it is set aside with a warning and every bit of the one before is.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import dataclasses
import io
import os
import random
import shutil
import sys
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

from vimoe_jax.config.train import Checkpoint
from vimoe_jax.run import state as state_lib
from vimoe_jax.run.checkpoint import Checkpoints
from vimoe_jax.run.state import TrainState

KINDS = ("flipped", "cut short", "emptied", "missing")


def example(step: int) -> TrainState:
    """A small state with moments and a frozen parameter, other numbers at each step."""
    rng = np.random.default_rng(step)
    params = {f"layer.{i}": jnp.asarray(rng.normal(size=(8, 16)), jnp.float32) for i in range(4)}
    state = state_lib.create(params, optax.adam(1e-3), set(params) - {"layer.3"})
    return dataclasses.replace(state, step=jnp.asarray(step, jnp.int32))


def shapes_of(state: TrainState) -> TrainState:
    """What `Checkpoints.restore` is given for it."""
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
    )


def write_two(folder: Path) -> dict[int, TrainState]:
    """Checkpoints of steps 1 and 2."""
    states = {step: example(step) for step in (1, 2)}
    checkpoints = Checkpoints(folder, Checkpoint())
    for step, state in states.items():
        checkpoints.save(state, {"batches": step}, val_loss=float(step))
    checkpoints.close()
    return states


def damage(checkpoint: Path, kind: str, draw: random.Random) -> Path:
    """Does it to one file, each as likely as any other; returns which."""
    files = sorted(p for p in checkpoint.rglob("*") if p.is_file() and p.stat().st_size)
    file = draw.choice(files)
    size = file.stat().st_size
    if kind == "flipped":
        with open(file, "r+b") as f:
            place = draw.randrange(size)
            f.seek(place)
            old = f.read(1)[0]
            f.seek(place)
            f.write(bytes([old ^ draw.randrange(1, 256)]))
    elif kind == "missing":
        file.unlink()
    else:
        os.truncate(file, 0 if kind == "emptied" else draw.randrange(size))
    return file.relative_to(checkpoint)


def read(folder: Path, states: dict[int, TrainState]) -> tuple[int, str]:
    """Restores; the step it came from and what was said.

    Raises:
      AssertionError: an array or the position differs from what was written at that step.
    """
    said = io.StringIO()
    with contextlib.redirect_stderr(said):
        checkpoints = Checkpoints(folder, Checkpoint())
        restored, data = checkpoints.restore(shapes_of(states[2]))
        checkpoints.close()
    step = int(restored.step)
    jax.tree.map(np.testing.assert_array_equal, restored, states[step])
    assert data == {"batches": step}
    return step, said.getvalue()


def damage_often(folder: Path, count: int, seed: int) -> collections.Counter[tuple[str, int]]:
    """How often each kind of damage, `count` times each, was answered by which checkpoint."""
    draw, counts = random.Random(seed), collections.Counter()
    states = write_two(folder / "whole")
    for kind in KINDS * count:
        copy = folder / "damaged"
        shutil.copytree(folder / "whole", copy / "checkpoints")
        file = damage(copy / "checkpoints/2", kind, draw)
        step, said = read(copy / "checkpoints", states)
        if (step == 1) != ("unreadable checkpoint" in said and "using step 1" in said):
            raise AssertionError(f"{file} {kind}: step {step}, but it was said: {said!r}")
        counts[kind, step] += 1
        shutil.rmtree(copy)
    return counts


def main() -> int:
    """Prints a line for each kind."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=100, help="of each kind")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        counts = damage_often(Path(folder), arguments.count, arguments.seed)
    for kind in KINDS:
        older, newest = counts[kind, 1], counts[kind, 2]
        print(f"{kind}: {older + newest} times; {older} noticed, {newest} without effect")
    return 0


if __name__ == "__main__":
    sys.exit(main())
