"""Kills a run at random moments, resumes it each time, compares with an undisturbed one.

python -m tests.faults.kill --count=50 --seed=0

One kill in six hits the start of the process, the others the training; a checkpoint is written at
every step, so that about as many saves as steps are cut off. After each kill all checkpoints
must agree with their manifests, and the next start must resume at the newest of them.
"""

from __future__ import annotations

import argparse
import dataclasses
import random
import re
import signal
import sys
import tempfile
import time
from pathlib import Path

from tests.faults import runs
from vimoe_jax.run import manifest

STEPS = 100
OPTIONS = (f"--config.train.steps={STEPS}", "--config.checkpoint.every=1", "--config.eval.every=50")


@dataclasses.dataclass
class Counts:
    """What was hit, and what came of it."""

    kills: int = 0
    during_save: int = 0
    before_training: int = 0
    resumptions: int = 0
    finished: int = 0
    faults: list[str] = dataclasses.field(default_factory=list)

    def __str__(self) -> str:
        return (
            f"{self.kills} kills ({self.during_save} during a save, {self.before_training} before "
            f"the first step), {self.resumptions} resumptions, {self.finished} runs finished: "
            + ("; ".join(self.faults) or "all bit-identical with the undisturbed run")
        )


def kill_often(folder: Path, env: dict[str, str], count: int, seed: int) -> Counts:
    """Does it, run after run until there were `count` kills and the last run is finished."""
    draw, counts = random.Random(seed), Counts()
    whole = folder / "whole"
    runs.finish(whole, env, *OPTIONS)
    while counts.kills < count:
        workdir = folder / f"killed-{counts.finished}"
        expected = 0
        while (at := _run_once(workdir, env, draw if counts.kills < count else None, counts)) >= 0:
            if at < expected:
                counts.faults.append(f"{workdir.name}: step {expected} was lost")
            expected = at
        counts.finished += 1
        if found := runs.differences(whole, workdir, STEPS):
            counts.faults.append(f"{workdir.name}: {found[0]} differs ({len(found)} in all)")
    return counts


def _run_once(
    workdir: Path, env: dict[str, str], draw: random.Random | None, counts: Counts
) -> int:
    """Starts the run and kills it; the newest checkpoint then, or -1 if the run has ended."""
    before, log = runs.steps(workdir)[-1:], workdir.with_suffix(".log")
    process = runs.start(workdir, env, log, *OPTIONS)
    if draw is not None and draw.random() < 1 / 6:
        wait(process, lambda: False, draw.uniform(0, 8))
    elif draw is not None:
        wait(process, lambda: " · loss " in log.read_text(), 300)
        wait(process, lambda: False, draw.uniform(0, 2))
    else:
        process.wait()
    process.send_signal(signal.SIGKILL)
    code, text = process.wait(), log.read_text()
    counts.before_training += code == -signal.SIGKILL and " · loss " not in text
    if resumed := re.search(r"resuming at step (\d+)", text):
        counts.resumptions += 1
        if [int(resumed[1])] != before:
            counts.faults.append(f"{workdir.name}: resumed at {resumed[1]}, not at {before}")
    if code == 0:
        return -1
    if code != -signal.SIGKILL:
        raise AssertionError(text[-2000:])
    counts.kills += 1
    # Before its first step, what lies there half-written may be of the start before.
    counts.during_save += " · loss " in text and runs.half_written(workdir)
    whole = runs.steps(workdir)
    for step in whole:
        if not manifest.check(workdir / "checkpoints" / str(step)):
            counts.faults.append(f"{workdir.name}: step {step} has no manifest")
    return whole[-1] if whole else 0


def wait(process, until, seconds: float) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end and process.poll() is None and not until():
        time.sleep(0.002)


def main() -> int:
    """Prints one line; exit code 1 if anything differed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    from vimoe_jax.datasets import viscenes

    with tempfile.TemporaryDirectory() as folder:
        viscenes.prepare(Path(folder, "data"), "tiny", progress=False)
        env = runs.environment(Path(folder, "data"), Path(folder, "cache"))
        counts = kill_often(Path(folder), env, arguments.count, arguments.seed)
    print(counts)
    return bool(counts.faults)


if __name__ == "__main__":
    sys.exit(main())
