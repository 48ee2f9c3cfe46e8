"""A step that never ends: all threads' stacks are written down and the process exits.

A collective that waits for a host that is gone, or a file system that never answers, raises
nothing. Whoever started the process can start it again; a process that hangs is never restarted.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

EXIT_CODE = 1  # not 2: the same command may well succeed
FIRST = 10  # the first step compiles, and has so many times as long
_STDERR = 2
_GRACE = 30.0  # seconds that this thread has for its report, before it is done without Python


class Watchdog:
    """Ends the process if `beat` is not called for too long; a context manager.

    Args:
      seconds: between two beats; 0 watches nothing.
      path: where the stacks go, besides stderr.
    """

    def __init__(self, seconds: float, path: Path):
        self._seconds, self._path = seconds, path
        self._limit, self._last = FIRST * seconds, time.monotonic()
        self._pauses = 0
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self) -> Watchdog:
        self._last = time.monotonic()
        if self._seconds:
            self._thread.start()
        return self

    def __exit__(self, *_) -> None:
        self._end.set()
        if self._seconds:
            self._thread.join()
            faulthandler.cancel_dump_traceback_later()

    def beat(self) -> None:
        """A step has ended."""
        self._last, self._limit = time.monotonic(), self._seconds

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Nothing is watched meanwhile; afterwards, time starts anew."""
        self._pauses += 1
        try:
            yield
        finally:
            self._last = time.monotonic()
            self._pauses -= 1

    def _watch(self) -> None:
        while not self._end.wait(min(self._seconds / 8, 5.0)):
            left = self._limit - (time.monotonic() - self._last)
            if self._pauses:
                faulthandler.cancel_dump_traceback_later()
            elif left <= 0:
                self._exit()
            else:
                # Where a library hangs without giving Python's lock back, this thread does not run
                # either; faulthandler's timer is of no Python. By number: a notebook's stderr is
                # no file.
                faulthandler.dump_traceback_later(left + _GRACE, exit=True, file=_STDERR)

    def _exit(self) -> None:
        try:
            with open(self._path, "w", encoding="utf-8") as f:
                faulthandler.dump_traceback(f, all_threads=True)
            where = f"stacks of all threads are in {self._path}"
        except OSError as e:
            where = f"{self._path}: {e.strerror}"
        faulthandler.dump_traceback(_STDERR, all_threads=True)
        print(
            f"error: no step has ended for {self._limit:g} s (config.train.hang_seconds = "
            f"{self._seconds:g}); {where}",
            file=sys.__stderr__,
            flush=True,
        )
        os._exit(EXIT_CODE)
