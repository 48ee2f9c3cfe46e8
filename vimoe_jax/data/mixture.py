"""The records of several datasets as one sequence."""

from __future__ import annotations

import bisect
import dataclasses
import functools
import itertools
from collections.abc import Iterable, Iterator

from vimoe_jax.config.mixture import PLAIN, Part
from vimoe_jax.datasets.records import QA, Record, Source, questions


@dataclasses.dataclass(frozen=True)
class Mixture:
    """The records of several sources, one part after the other, as one source.

    Attributes:
      parts: what they are.
      sources: their records.
      weighted: draw parts by their weights in training batches; else every record counts alike.
    """

    parts: tuple[Part, ...]
    sources: tuple[Source, ...]
    weighted: bool = True

    @functools.cached_property
    def starts(self) -> tuple[int, ...]:
        """The index of each part's first record, and at last the number of records."""
        return tuple(itertools.accumulate(map(len, self.sources), initial=0))

    def __len__(self) -> int:
        return self.starts[-1]

    def __getitem__(self, index: int) -> Record:
        if not 0 <= index < len(self):  # ends plain iteration
            raise IndexError(index)
        number = self.part_number(index)
        return self.sources[number][index - self.starts[number]]

    def part_number(self, index: int) -> int:
        """Which part a record is of."""
        return bisect.bisect_right(self.starts, index) - 1

    def shares(self, indices: Iterable[int]) -> dict[str, int]:
        """How many of some records are of each part."""
        counts = dict.fromkeys((p.label for p in self.parts), 0)
        for index in indices:
            counts[self.parts[self.part_number(index)].label] += 1
        return counts

    def questions(self) -> Iterator[QA]:
        """All questions, without opening pictures where the parts allow that."""
        for source in self.sources:
            yield from questions(source)

    def by_part(self) -> Iterator[tuple[Part, Source]]:
        """Each part with its records."""
        return zip(self.parts, self.sources, strict=True)


def style_of(source: Source, index: int) -> str:
    """The prompts' style of a record: its part's in a mixture, else `PLAIN`."""
    if isinstance(source, Mixture):
        return source.parts[source.part_number(index)].style
    return PLAIN
