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

    from vimoe_jax import config
    from vimoe_jax.model.blueprint import Blueprint
    from vimoe_jax.parallel.mesh import make_mesh
    from vimoe_jax.plan.compiled import abstract_batch
    from vimoe_jax.train.program import Program

    c = config.load(CONFIG)
    decoder = dataclasses.replace(c.model.decoder, depth=depth)
    c = dataclasses.replace(c, model=dataclasses.replace(c.model, decoder=decoder, unroll=1))
    blueprint, mesh = Blueprint.create(c.model, 640), make_mesh({}, jax.devices()[:1])
    program = Program.create(c, blueprint, mesh)
    start = time.monotonic()
    program.step().lower(program.abstract(), abstract_batch(c, mesh)).compile()
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
