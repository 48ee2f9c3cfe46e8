"""Where wall time goes, over all resumptions, and what the steps get done in it."""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Iterator, Mapping

import jax

from vimoe_jax.data.batch import Batch
from vimoe_jax.data.mixture import Mixture

# Only the first is what a run is for. `compile` is the first step of each start; `start` what comes
# before it, from the process' own start; `redone` what was trained and lost with a crash.
KINDS = ("steps", "compile", "data", "save", "eval", "start", "redone")


class Clock:
    """Seconds by kind. Time that nobody claims is the steps'."""

    def __init__(self, before: Mapping[str, float]):
        self._spent = {kind: float(before.get(kind, 0.0)) for kind in KINDS}
        self._kind, self._since = "steps", time.monotonic()

    def _settle(self) -> None:
        now = time.monotonic()
        self._spent[self._kind] += now - self._since
        self._since = now

    @contextlib.contextmanager
    def spending(self, kind: str) -> Iterator[None]:
        """What happens within is of this kind."""
        self._settle()
        outer, self._kind = self._kind, kind
        try:
            yield
        finally:
            self._settle()
            self._kind = outer

    def add(self, kind: str, seconds: float) -> None:
        """Time that passed elsewhere."""
        self._spent[kind] += max(seconds, 0.0)

    def seconds(self) -> dict[str, float]:
        """By kind, up to now."""
        self._settle()
        return {kind: round(spent, 3) for kind, spent in self._spent.items()}

    def training(self) -> float:
        """Seconds in the loop, over all resumptions."""
        return sum(s for kind, s in self.seconds().items() if kind not in ("start", "redone"))


class Meter:
    """Examples, tokens and a mixture's shares since the last look, and a clock.

    Tokens are all places that are not padding, those of pictures too.

    Args:
      source: what is drawn from.
      before: seconds by kind of the run so far, as the checkpoint has them.
    """

    def __init__(self, source: Mixture, before: Mapping[str, float]):
        self.clock = Clock(before)
        self._source, self._drawn = source, Counter()
        self._examples, self._tokens, self._looked = 0, 0, self.clock.seconds()

    def count(self, batch: Batch) -> None:
        """Counts a batch of this process for all of them."""
        if len(self._source.components) > 1:
            self._drawn.update(self._source.shares(batch.record.tolist()))
        self._examples += int((~batch.skipped).sum()) * jax.process_count()
        self._tokens += int((batch.segments != 0).sum()) * jax.process_count()

    def rates(self) -> dict[str, float]:
        """What is logged: rates since the last look, seconds by kind since ever."""
        spent = self.clock.seconds()
        past = {kind: spent[kind] - self._looked[kind] for kind in KINDS}
        seconds = max(past["steps"] + past["compile"] + past["data"], 1e-9)
        rates = {
            "train/examples_per_second": self._examples / seconds,
            "train/tokens_per_second": self._tokens / seconds,
            "train/data_wait": past["data"] / seconds,
            "train/goodput": spent["steps"] / max(sum(spent.values()), 1e-9),
        }
        total = max(self._drawn.total(), 1)
        rates |= {f"train/share/{label}": n / total for label, n in self._drawn.items()}
        rates |= {f"time/{kind}": seconds for kind, seconds in spent.items()}
        self._looked, self._examples, self._tokens = spent, 0, 0
        self._drawn.clear()
        return rates


def since_process_start() -> float:
    """Seconds."""
    import psutil

    return time.time() - psutil.Process().create_time()
