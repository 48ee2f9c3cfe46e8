"""The one schema behind every dataset: pictures and what is asked about them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Protocol, runtime_checkable

TASKS = ("caption", "vqa", "ocr_vqa")


@dataclasses.dataclass(frozen=True)
class QA:
    """One question, or the request for a caption.

    Attributes:
      id: unique within the dataset's split.
      task: one of `TASKS`.
      question: as published (not yet normalised); empty for captions.
      answers: all references; several captions of a picture are several answers of one QA.
      type: the dataset's own question type ("color", "number", "title", …), or "".
      explanations: why the answer is what it is, where a dataset says so.
    """

    id: str
    task: str
    question: str
    answers: tuple[str, ...]
    type: str = ""
    explanations: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Record:
    """One picture, or several, or none, with everything asked about it.

    Attributes:
      id: unique within the dataset's split; also what messages call the record.
      pictures: encoded bytes of each (PNG, JPEG, WebP, …). Sources that read files do so on access.
      qa: at least one; each question sees all of the pictures.
    """

    id: str
    pictures: tuple[bytes, ...]
    qa: tuple[QA, ...]


@runtime_checkable
class Source(Protocol):
    """A random-access sequence of records; picklable, so that Grain's workers can hold one."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Record: ...


class BadRecord(Exception):
    """A record that cannot be used; the message names the file (and line) and says why."""


def questions(source: Source) -> Iterable[QA]:
    """All questions of a source, without opening pictures where the source allows that."""
    read = getattr(source, "questions", None)
    if read is not None:
        yield from read()
        return
    for i in range(len(source)):
        yield from source[i].qa
