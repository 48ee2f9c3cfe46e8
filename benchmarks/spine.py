"""Figures of the spine: seconds to `--help` and to the first step, compile time by depth.

python -m benchmarks.spine        # needs ViScenes in data/ (make run, or data.prepare)
"""

from __future__ import annotations

import dataclasses
import subprocess
import sys
import tempfile
import time

CONFIG = "configs/moe_small.py"


def help_seconds() -> float:
    """Wall time of `python -m vimoe_jax.main --help`."""
    start = time.monotonic()
    subprocess.run(
        [sys.executable, "-m", "vimoe_jax.main", "--help"], capture_output=True, check=True
    )
    return time.monotonic() - start


def first_step_seconds() -> str:
    """What a fresh run says of its first step, from the start of the process."""
    with tempfile.TemporaryDirectory() as workdir:
        command = [
            sys.executable, "-m", "vimoe_jax.main", f"--config={CONFIG}", f"--workdir={workdir}",
            "--config.train.steps=1", "--config.eval.at_end=False", "--config.eval.every=0",
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    return next(line for line in done.stderr.splitlines() if line.startswith("first step"))


def compile_seconds(depth: int) -> float:
    """Tracing and compiling the step of moe_small with this many decoder layers, scanned."""
    import jax
    import jax.numpy as jnp

    from vimoe_jax import config
    from vimoe_jax.model.blueprint import Blueprint
    from vimoe_jax.parallel.mesh import make_mesh
    from vimoe_jax.train import optim
    from vimoe_jax.train import state as state_lib
    from vimoe_jax.train.step import make_train_step

    c = config.load(CONFIG)
    decoder = dataclasses.replace(c.model.decoder, depth=depth)
    c = dataclasses.replace(c, model=dataclasses.replace(c.model, decoder=decoder, unroll=1))
    blueprint, mesh = Blueprint.create(c.model, 640), make_mesh({}, jax.devices()[:1])
    axes = blueprint.axes()
    tx = optim.make(c.optim, c.train.steps, axes)
    params = {n: jax.ShapeDtypeStruct(s, jnp.float32) for n, s in blueprint.shapes().items()}
    state = jax.eval_shape(lambda p: state_lib.create(p, tx, set(axes)), params)
    b, s, size = c.train.batch_size, c.data.text_length, c.model.image_size
    batch = {
        "image": jax.ShapeDtypeStruct((b, size, size, 3), jnp.uint8),
        "weights": jax.ShapeDtypeStruct((b, s), jnp.float32),
    } | {
        n: jax.ShapeDtypeStruct((b, s), jnp.int32)
        for n in ("tokens", "targets", "segments", "positions")
    }
    step = jax.jit(make_train_step(c, blueprint, tx, mesh), donate_argnums=0)
    start = time.monotonic()
    step.lower(state, batch).compile()
    return time.monotonic() - start


def main() -> None:
    """Prints the table."""
    print(f"--help: {help_seconds():.2f} s")
    print(first_step_seconds())
    compile_seconds(4)  # warms up the tracer
    times = {depth: compile_seconds(depth) for depth in (4, 24)}
    print(
        f"compile, 4 layers {times[4]:.2f} s, 24 layers {times[24]:.2f} s: "
        f"{times[24] / times[4]:.2f} ×"
    )


if __name__ == "__main__":
    main()
