"""The records of several datasets as one sequence."""

from __future__ import annotations

import bisect
import dataclasses
import functools
import itertools
from collections.abc import Iterable, Iterator

from vimoe_jax.config.mixture import PLAIN, Component
from vimoe_jax.datasets.records import QA, Record, Source, questions


@dataclasses.dataclass(frozen=True)
class Mixture:
    """The records of several sources, one component after the other, as one source.

    Attributes:
      components: what they are.
      sources: their records.
      weighted: draw components by their weights in training batches; else every record counts
        alike.
    """

    components: tuple[Component, ...]
    sources: tuple[Source, ...]
    weighted: bool = True

    @functools.cached_property
    def starts(self) -> tuple[int, ...]:
        """The index of each component's first record, and at last the number of records."""
        return tuple(itertools.accumulate(map(len, self.sources), initial=0))

    def __len__(self) -> int:
        return self.starts[-1]

    def __getitem__(self, index: int) -> Record:
        if not 0 <= index < len(self):  # ends plain iteration
            raise IndexError(index)
        number = self.component_number(index)
        return self.sources[number][index - self.starts[number]]

    def component_number(self, index: int) -> int:
        """Which component a record is of."""
        return bisect.bisect_right(self.starts, index) - 1

    def shares(self, indices: Iterable[int]) -> dict[str, int]:
        """How many of some records are of each component."""
        counts = dict.fromkeys((p.label for p in self.components), 0)
        for index in indices:
            counts[self.components[self.component_number(index)].label] += 1
        return counts

    def questions(self) -> Iterator[QA]:
        """All questions, without opening pictures where the components allow that."""
        for source in self.sources:
            yield from questions(source)

    def by_component(self) -> Iterator[tuple[Component, Source]]:
        """Each component with its records."""
        return zip(self.components, self.sources, strict=True)


def style_of(source: Source, index: int) -> str:
    """The prompts' style of a record: its component's in a mixture, else `PLAIN`."""
    if isinstance(source, Mixture):
        return source.components[source.component_number(index)].style
    return PLAIN
