"""What a reader gives: questions with the name of their picture, not yet sifted."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from vimoe_jax.datasets.records import QA


@dataclasses.dataclass(frozen=True)
class Picture:
    """A picture as annotations name it.

    Attributes:
      id: its identity within the dataset: questions with the same id are asked of one picture.
      names: file names that publishers use for it, the likeliest first; the finder also tries them
        in other case and with other extensions of pictures.
      coco: its number in COCO, for datasets on COCO's pictures: every way COCO names a file counts.
    """

    id: str
    names: tuple[str, ...] = ()
    coco: int | None = None


@dataclasses.dataclass(frozen=True)
class Asked:
    """One well-formed annotation.

    Attributes:
      where: `file:line`, or `file: annotations[12]`; what messages call it.
      picture: the picture it is about.
      qa: as published, text untouched; `id` unique within the split; `answers` as many as were
        published, possibly empty ones.
    """

    where: str
    picture: Picture
    qa: QA


@dataclasses.dataclass(frozen=True)
class Malformed:
    """An annotation that cannot be read as one.

    Attributes:
      where: as in `Asked`.
      reason: which key is missing or has the wrong type.
    """

    where: str
    reason: str


Annotations = Iterator[Asked | Malformed]
