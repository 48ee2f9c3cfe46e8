"""What a published dataset is, and how its files are read.

A reader knows one dataset's files and nothing else: it checks the shape of each annotation, says
where it stands, and leaves everything that datasets have in common (finding and opening pictures,
empty questions, placeholder answers, duplicates, leakage, grouping by picture) to
`vimoe_jax.datasets.preparing.sifting`.
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from vimoe_jax.base.errors import UserError
from vimoe_jax.datasets.annotations import Annotations

if TYPE_CHECKING:
    from vimoe_jax.datasets.preparing.files import Files


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
      profile: the text profile that scoring applies to both sides (`text.normalize.PROFILES`).
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


NAMES = (
    "vivqa", "uit_viic", "ktvic", "openvivqa", "evjvqa", "viocrvqa", "vitextvqa", "vivqa_x",
    "viclevr", "xm3600", "coco35l",
)  # fmt: skip


def get(name: str) -> Dataset:
    """A published dataset; its reader is imported now.

    Raises:
      UserError: no such dataset.
    """
    if name not in NAMES:
        raise UserError(f"no published dataset is called {name!r}; there are {', '.join(NAMES)}")
    return importlib.import_module(f"vimoe_jax.datasets.readers.{name}").DATASET
