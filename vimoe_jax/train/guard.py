"""Signals: the first SIGTERM or Ctrl-C asks the loop to save and stop, a second one ends it."""

from __future__ import annotations

import signal
import time
from types import FrameType
from typing import Any

from vimoe_jax.parallel import distributed

# `timeout` and some schedulers signal a process and then its group: two signals that mean one.
_SAME = 1.0  # seconds


class Interrupt:
    """While entered, turns SIGTERM and SIGINT into a flag; put it around the whole job.

    Attributes:
      signal: the name of what this process got, None so far.
    """

    def __init__(self):
        self.signal: str | None = None
        self._since = 0.0
        self._before: dict[int, Any] = {}
        self._agreed = False
        self._any: distributed.AnyProcess | None = None

    def __enter__(self) -> Interrupt:
        for number in (signal.SIGTERM, signal.SIGINT):
            self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, _: FrameType | None) -> None:
        now = time.monotonic()
        if self.signal is None:
            self.signal, self._since = signal.Signals(number).name, now
        elif now - self._since > _SAME:
            raise KeyboardInterrupt

    def agreed(self) -> bool:
        """Whether to stop here; the same answer in every process at the same call.

        Of several processes all must ask, equally often. A signal to any one counts, one call late.
        """
        if not distributed.several():
            return self.signal is not None
        if not self._agreed:
            self._any = self._any or distributed.AnyProcess()
            self._agreed = self._any(self.signal is not None)
        return self._agreed

    def __str__(self) -> str:
        return self.signal or "a signal to another process"
