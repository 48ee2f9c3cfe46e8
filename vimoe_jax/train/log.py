"""What a run leaves of its numbers: `metrics.jsonl` and TensorBoard files."""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


class MetricWriter:
    """Appends one JSON object a line to `metrics.jsonl`, and the same numbers to TensorBoard.

    A run that resumes at step n first drops every line of a later step (those steps are about to be
    done again), and a last line that a crash left torn.
    """

    def __init__(self, workdir: Path, resume_step: int):
        self.path = workdir / "metrics.jsonl"
        _keep_until(self.path, resume_step)
        self._file = open(self.path, "a", encoding="utf-8")
        from tensorboardX import SummaryWriter

        # TensorBoard drops the events of steps that are written again after `purge_step`.
        self._events = SummaryWriter(str(workdir / "tensorboard"), purge_step=resume_step or None)

    def write(self, step: int, metrics: Mapping[str, float | Sequence[float]]) -> None:
        """One line; values that are not finite are written as null, which JSON can hold.

        TensorBoard gets a list as one curve an entry, `NAME/0`, `NAME/1`, …
        """
        clean = {n: _clean(v) for n, v in metrics.items()}
        self._file.write(json.dumps({"step": step, **clean}) + "\n")
        self._file.flush()
        for name, value in metrics.items():
            if isinstance(value, Sequence):
                for i, v in enumerate(value):
                    self._events.add_scalar(f"{name}/{i}", v, step)
            else:
                self._events.add_scalar(name, value, step)

    def close(self) -> None:
        """Flushes and closes both.

        TensorBoard's files are copies: where a full disk keeps their last numbers out, the error of
        what the run itself could not write is the one to show.
        """
        self._file.close()
        events = self._events.file_writer.event_writer
        with contextlib.suppress(OSError, ValueError):
            self._events.close()
        # tensorboardX closes again when Python ends, with a traceback if the first time failed.
        events._closed = True


def _clean(value: float | Sequence[float]) -> Any:
    if isinstance(value, Sequence):
        return [_clean(v) for v in value]
    return value if math.isfinite(value) else None


def _keep_until(path: Path, step: int) -> None:
    if not path.exists():
        return
    kept = []
    for line in path.read_bytes().splitlines(keepends=True):
        try:
            if not line.endswith(b"\n") or json.loads(line)["step"] > step:
                continue
        except (ValueError, KeyError, TypeError):
            continue
        kept.append(line)
    temporary = path.with_suffix(".tmp")
    temporary.write_bytes(b"".join(kept))
    os.replace(temporary, path)
