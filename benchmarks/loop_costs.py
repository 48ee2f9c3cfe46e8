"""What logging and saving cost a training step: the loop with and without, in turns.

python -m benchmarks.loop_costs [--rounds=7] [--steps=100] [--batch=32]

Three ways of running the loop take turns, each round `--steps` steps of one model (100 ms and more
a step on two CPU cores): plain (no line, no checkpoint), logged (a line every 20 steps) and saved
(a checkpoint every `--steps` steps, written in the background). It is one batch all the time: what
the data cost is the input pipeline's benchmark. On a machine that others use too, CPU time
says more than wall time. As both differ by more than a line costs from round to round, the host's
work for a line is timed by itself too; on an accelerator the next step runs meanwhile.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from vimoe_jax.data.batch import Batch

GOALS = {"logged": 0.005, "saved": 0.02}  # of a step's time
NEVER = 1 << 30  # steps
LINE = 20  # steps between two lines


class Constant:
    """One batch for ever, as `pipeline.TrainBatches` gives them."""

    def __init__(self, batch: Batch):
        self._batch, self._count = batch, 0

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        self._count += 1
        return self._batch

    def state(self) -> dict[str, int]:
        """How many were taken."""
        return {"batches": self._count}

    def close(self) -> None:
        """Nothing to stop."""


def configuration(batch: int, tiny: bool) -> Any:
    """A mixture of experts on ViScenes' tiny variant."""
    from vimoe_jax import config as config_lib

    c = config_lib.defaults()
    c.data.variant, c.data.vocab_size, c.data.text_length = "tiny", 420, 64
    c.model.image_size = 32 if tiny else 64
    c.model.vision.depth = c.model.decoder.depth = 1 if tiny else 4
    c.model.decoder.moe.num_experts, c.model.decoder.moe.placement = 4, "all"
    c.eval.every, c.eval.at_end, c.data.test_splits = 0, False, ()
    c.train.batch_size = c.eval.batch_size = batch
    c.train.steps = NEVER  # so that the learning rate hardly falls
    c.checkpoint.keep_last, c.checkpoint.keep_best = 1, 0
    return config_lib.resolve(c.to_dict())


def runner(c: Any, workdir: Path) -> Any:
    """The run's trainer."""
    from vimoe_jax.run.workdir import start_run
    from vimoe_jax.train.guard import Interrupt
    from vimoe_jax.train.loop import Trainer

    return Trainer(start_run(c, workdir), Interrupt())


def seconds_a_step(trainer: Any, name: str, steps: int) -> np.ndarray:
    """Runs the loop for `steps` steps and two; the mean wall and CPU time of those from the second.

    The first compiles and the last always logs and saves: neither is measured.
    """
    c, start = trainer.config, int(trainer.state.step)
    train = dataclasses.replace(
        c.train, steps=start + steps + 2, log_every=LINE if name == "logged" else NEVER
    )
    # Once, early in the round, so that all of the writing happens within it.
    every = start + 2 + steps // 10 if name == "saved" else NEVER
    save = dataclasses.replace(c.checkpoint, every=every)
    trainer.config = dataclasses.replace(c, train=train, checkpoint=save)
    calls, compiled = [], trainer._step

    def step(*args: Any) -> Any:
        calls.append((time.perf_counter(), time.process_time()))
        return compiled(*args)

    trainer._step = step
    try:
        trainer.train()
    finally:
        trainer._step = compiled
    return np.subtract(calls[-1], calls[1]) / steps


@contextlib.contextmanager
def timing_lines() -> Iterator[list[float]]:
    """Meanwhile each logged line adds the seconds it took, its wait for the step left out."""
    import jax

    from vimoe_jax.train import loop

    flush, seconds = loop._Log.flush, []

    def timed(log: Any) -> None:
        if log._pending is None:
            return
        jax.block_until_ready(log._pending[1])
        start = time.perf_counter()
        flush(log)
        seconds.append(time.perf_counter() - start)

    with mock.patch.object(loop._Log, "flush", timed):
        yield seconds


def measure(
    rounds: int, steps: int, batch: int, tiny: bool
) -> tuple[dict[str, list[np.ndarray]], float]:
    """Wall and CPU seconds a step of each way, a round each; seconds of a line."""
    times: dict[str, list[np.ndarray]] = {name: [] for name in ("plain", *GOALS)}
    with tempfile.TemporaryDirectory() as folder, timing_lines() as lines:
        trainer = runner(configuration(batch, tiny), Path(folder))
        opened = trainer._open_batches()
        batches = Constant(next(opened))
        opened.close()
        trainer._open_batches = lambda *_: batches
        for number in range(rounds + 1):
            for name in times:
                seconds = seconds_a_step(trainer, name, steps)
                if number:  # the first round compiles and warms up
                    times[name].append(seconds)
        trainer.checkpoints.close()
    return times, float(np.median(lines)) if lines else 0.0


def main(argv: Sequence[str] | None = None) -> None:
    """Prints the table, and as a last line the record as JSON."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=100, help="a round")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--tiny", action="store_true", help="a shape for testing")
    a = parser.parse_args(argv)
    measured, line = measure(a.rounds, a.steps, a.batch, a.tiny)
    times = {name: np.array(t) for name, t in measured.items()}
    wall, cpu = 1e3 * np.median(times["plain"], 0)
    record: dict[str, Any] = {"step_ms": wall, "step_cpu_ms": cpu}
    lines = [f"plain: {wall:.1f} ms a step, {cpu:.1f} ms of CPU time"]
    for name, goal in GOALS.items():
        # Round by round: what else the machine does changes slowly.
        ratios = times[name] / times["plain"] - 1
        record[name], record[f"{name}_cpu"] = np.median(ratios, 0).tolist()
        low, high = ratios.min(0), ratios.max(0)
        lines.append(
            f"{name}: {record[name]:+.2%} (rounds {low[0]:+.2%} to {high[0]:+.2%}), CPU time "
            f"{record[name + '_cpu']:+.2%} ({low[1]:+.2%} to {high[1]:+.2%}); goal {goal:.1%}"
        )
    record["line_ms"] = 1e3 * line
    share = record["line_ms"] / LINE / wall
    lines.append(
        f"a line: {record['line_ms']:.2f} ms of the host's, {share:.2%} every {LINE} steps"
    )
    print("\n".join(lines), file=sys.stderr)
    print(json.dumps(record))


if __name__ == "__main__":
    main()
