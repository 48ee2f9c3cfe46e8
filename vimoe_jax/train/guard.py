"""Signals: the first SIGTERM or Ctrl-C asks the loop to save and stop, a second one ends it."""

from __future__ import annotations

import signal
from types import FrameType


class Interrupt:
    """While entered, turns SIGTERM and SIGINT into a flag; put it around the whole job."""

    def __init__(self):
        self.signal: str | None = None
        self._before: dict[int, object] = {}

    def __enter__(self) -> Interrupt:
        for number in (signal.SIGTERM, signal.SIGINT):
            self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, _: FrameType | None) -> None:
        if self.signal is not None:
            raise KeyboardInterrupt
        self.signal = signal.Signals(number).name

    def __bool__(self) -> bool:
        return self.signal is not None
