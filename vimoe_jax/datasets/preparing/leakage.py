"""Pictures and questions that two splits share.

Pictures of two splits are the same by COCO's number or by content. Where no files were read, those
of other origins are the same by id and name together. Where there is content, id and name prove
nothing, since publishers number the pictures of each split anew.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from itertools import combinations
from typing import TYPE_CHECKING

from vimoe_jax.text.normalize import normalize

if TYPE_CHECKING:
    from vimoe_jax.datasets.preparing.kept import Kept

EXAMPLES = 5


@dataclasses.dataclass(frozen=True)
class Shared:
    """What two splits have in common.

    Attributes:
      splits: their names.
      pictures: pictures of the first that the second holds too.
      pairs: questions of the first that the second asks of the same picture; captions aside.
      examples: ids of some such pictures.
    """

    splits: tuple[str, str]
    pictures: int
    pairs: int
    examples: tuple[str, ...]


def compared(text: str) -> str:
    """Text as two are compared."""
    return normalize(text).lower()


class Held:
    """The pictures of some splits, and what is asked of them."""

    def __init__(self, records: Iterable[Kept]):
        self._asked: dict[str, set[str]] = {}
        for record in records:
            for mark in marks(record):
                self._asked.setdefault(mark, set()).update(asked(record))

    def __contains__(self, record: Kept) -> bool:
        return any(mark in self._asked for mark in marks(record))

    def pairs(self, record: Kept) -> int:
        """How many of a record's questions are asked of the same picture here."""
        here = [self._asked.get(mark, set()) for mark in marks(record)]
        return sum(any(q in questions for questions in here) for q in asked(record))


def marks(record: Kept) -> Iterator[str]:
    """What a picture is known by."""
    if record.coco is not None:
        yield f"coco {record.coco}"
    if record.digest:
        yield f"content {record.digest}"
    elif record.coco is None:
        yield f"id {record.id} {record.name}"


def asked(record: Kept) -> list[str]:
    """A record's questions as they are compared; captions have none."""
    return [compared(qa.question) for qa in record.qa if qa.task != "caption"]


def between(splits: dict[str, Sequence[Kept]]) -> list[Shared]:
    """What every two splits share, in the splits' order."""
    held = {split: Held(records) for split, records in splits.items()}
    found = []
    for one, other in combinations(splits, 2):
        both = [r for r in splits[one] if r in held[other]]
        pairs = sum(held[other].pairs(r) for r in both)
        examples = tuple(r.id for r in both[:EXAMPLES])
        found.append(Shared((one, other), len(both), pairs, examples))
    return found
