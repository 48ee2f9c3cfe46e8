"""What a run leaves of its numbers: `metrics.jsonl` and TensorBoard files."""

from __future__ import annotations

import contextlib
import json
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vimoe_jax.base import files
from vimoe_jax.parallel import distributed


class MetricWriter:
    """Appends one JSON object per line to `metrics.jsonl`, and the same numbers to TensorBoard.

    A run that resumes at step n first drops every line of a later step (those steps are about to be
    done again), and a last line that a crash left torn. Of several processes, the first writes.

    Attributes:
      dropped_seconds: what the last of these lines says of the time spent until then; 0 if none.
    """

    def __init__(self, workdir: Path, resume_step: int):
        self.path = workdir / "metrics.jsonl"
        self.dropped_seconds = 0
        self._writes = distributed.is_lead()
        if not self._writes:
            return
        dropped = _keep_until(self.path, resume_step)
        times = [v for n, v in dropped.items() if n.startswith("time/")]
        self.dropped_seconds = sum(v for v in times if isinstance(v, int | float))
        self._file = open(self.path, "a", encoding="utf-8")
        self._events = _Events(workdir / "tensorboard", resume_step)

    def write(self, step: int, metrics: Mapping[str, float | Sequence[float]]) -> None:
        """One line; values that are not finite are written as null, which JSON can hold.

        TensorBoard gets a list as one curve per entry, `NAME/0`, `NAME/1`, …
        """
        if not self._writes:
            return
        clean = {n: _clean(v) for n, v in metrics.items()}
        self._file.write(json.dumps({"step": step, **clean}) + "\n")
        self._file.flush()
        curves = {}
        for name, value in metrics.items():
            if isinstance(value, Sequence):
                curves |= {f"{name}/{i}": v for i, v in enumerate(value)}
            else:
                curves[name] = value
        self._events.write(step, curves)

    def close(self) -> None:
        """Flushes and closes both."""
        if not self._writes:
            return
        self._file.close()
        self._events.close()


class _Events:
    """A TensorBoard file, written as the lines are.

    tensorboardX's own `SummaryWriter` writes from a thread and closes at exit: on a full disk, both
    end in tracebacks that nobody can catch.
    """

    def __init__(self, directory: Path, resume_step: int):
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto import event_pb2

        directory.mkdir(exist_ok=True)
        messages: Any = event_pb2  # protobuf makes its classes while it is imported
        self._event = messages.Event
        self._writer = EventsWriter(str(directory / "events"))
        if resume_step:
            # TensorBoard drops earlier files' events from this step on.
            start = messages.SessionLog(status=messages.SessionLog.START)
            self._writer.write_event(self._event(step=resume_step + 1, session_log=start))

    def write(self, step: int, curves: Mapping[str, float]) -> None:
        from tensorboardX.summary import scalar

        for name, value in curves.items():
            event = self._event(step=step, wall_time=time.time(), summary=scalar(name, value))
            self._writer.write_event(event)
        self._writer.flush()

    def close(self) -> None:
        # Everything was flushed; what a full disk refused then was an error then.
        with contextlib.suppress(OSError):
            self._writer.close()


def _clean(value: float | Sequence[float]) -> Any:
    if isinstance(value, Sequence):
        return [_clean(v) for v in value]
    return value if math.isfinite(value) else None


def _keep_until(path: Path, step: int) -> dict[str, Any]:
    """Drops lines of later steps; returns the last of them that has the times, or {}."""
    kept, dropped = [], {}
    if not path.exists():
        return dropped
    for line in path.read_bytes().splitlines(keepends=True):
        try:
            row = json.loads(line)
            if not line.endswith(b"\n") or row["step"] > step:
                dropped = row if any(n.startswith("time/") for n in row) else dropped
                continue
        except (ValueError, KeyError, TypeError):
            continue
        kept.append(line)
    files.write_bytes(path, b"".join(kept))
    return dropped
