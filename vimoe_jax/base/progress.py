"""Progress of long work: a line redrawn on a terminal, plain lines now and then in a log."""

from __future__ import annotations

import math
import sys
import time

_silent = False


def silence() -> None:
    """From now on this process shows no progress: of several, one does."""
    global _silent
    _silent = True


class Progress:
    """One line about the run: redrawn in place on a terminal, appended now and then in a log."""

    def __init__(self, total: int, start: int, what: str = "step"):
        self.total, self.what = total, what
        self._terminal = sys.stderr.isatty()
        self._start, self._since = start, time.monotonic()

    def show(self, step: int, text: str) -> None:
        """Shows the step, the text, and the time left at the mean speed since the start."""
        if _silent:
            return
        done, seconds = step - self._start, time.monotonic() - self._since
        left = (self.total - step) * seconds / done if done else math.nan
        line = f"{self.what} {step}/{self.total} · {text} · {_duration(left)} left"
        print(
            f"\r\033[K{line}" if self._terminal else line,
            file=sys.stderr,
            flush=True,
            end="" if self._terminal and step < self.total else "\n",
        )

    def say(self, text: str, *, everywhere: bool = False) -> None:
        """A line of its own; `everywhere`: also of a process that shows no progress."""
        if _silent and not everywhere:
            return
        print(f"\r\033[K{text}" if self._terminal else text, file=sys.stderr, flush=True)


def _duration(seconds: float) -> str:
    if not math.isfinite(seconds):
        return "?"
    minutes, s = divmod(int(seconds), 60)
    hours, m = divmod(minutes, 60)
    return f"{hours}:{m:02}:{s:02}" if hours else f"{m}:{s:02}"


class Ticker:
    """Progress of work counted item by item: now and then a line with rate and time left."""

    def __init__(self, what: str, total: int, every: float = 5.0):
        self._what, self._total, self._every = what, total, every
        self._done, self._start = 0, time.monotonic()
        self._shown = self._start

    def tick(self) -> None:
        """Counts one item."""
        self._done += 1
        if _silent:
            return
        now = time.monotonic()
        pause = 0.2 if sys.stderr.isatty() else self._every
        if now - self._shown < pause and self._done < self._total:
            return
        self._shown = now
        rate = self._done / max(now - self._start, 1e-9)
        left = _duration((self._total - self._done) / rate)
        line = f"{self._what}: {self._done}/{self._total} · {rate:.0f}/s · {left} left"
        terminal = sys.stderr.isatty()
        end = "" if terminal and self._done < self._total else "\n"
        print(f"\r\033[K{line}" if terminal else line, file=sys.stderr, flush=True, end=end)
