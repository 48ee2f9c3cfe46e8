"""What a reader of published files gives: questions with the name of their picture, not yet sifted.

A reader knows one dataset's files and nothing else: it checks the shape of each annotation, says
where it stands, and leaves everything that datasets have in common (finding and opening pictures,
empty questions, placeholder answers, duplicates, leakage, grouping by picture) to
`vimoe_jax.data.datasets.sifting`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING

from vimoe_jax.data.records import QA

if TYPE_CHECKING:
    from vimoe_jax.data.datasets.files import Files


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
      reason: which key is missing or of the wrong kind.
    """

    where: str
    reason: str


Annotations = Iterator[Asked | Malformed]


@dataclasses.dataclass(frozen=True)
class Dataset:
    """A published dataset: what it is, and how its files are read.

    Attributes:
      name: of the command line, the configuration and TFDS: lower case, digits, underscores.
      title: as its authors write it.
      description: what is asked of which pictures; two or three sentences.
      citation: BibTeX.
      licence: its terms as published, in one line.
      homepage: where its authors publish it.
      task: "caption", "vqa" or "ocr_vqa".
      splits: names that `read` may give, training first; a folder need not hold all of them.
      expected: patterns of annotation files, for the message when none is there.
      read: the annotations of each split whose file is found under a folder. The files are parsed
        before it returns, so that broken ones raise `UserError` before anything is written.
      profile: the text profile that scoring applies to both sides (`vimoe_jax.data.text.PROFILES`).
      variants: of datasets that come in several (languages, published forms), the default first;
        `read` gets the chosen one.
      open_ended: answers are free text, so that annotations that answer one question differently
        are references of it and no contradiction.
    """

    name: str
    title: str
    description: str
    citation: str
    licence: str
    homepage: str
    task: str
    splits: tuple[str, ...]
    expected: tuple[str, ...]
    read: Callable[[Files, str], Mapping[str, Annotations]]
    profile: str = "plain"
    variants: tuple[str, ...] = ("default",)
    open_ended: bool = False
