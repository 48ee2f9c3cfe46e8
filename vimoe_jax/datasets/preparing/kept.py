"""A record to be."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from vimoe_jax.datasets.records import QA


@dataclasses.dataclass(frozen=True)
class Kept:
    """A record to be: as `records.Record`, its picture still a file.

    Attributes:
      id: the picture's.
      name: the likeliest name of its file.
      coco: its number in COCO, if it has one.
      path: its file; None where only annotations are prepared.
      digest: SHA-256 of the file, or "".
      qa: at least one.
    """

    id: str
    name: str
    coco: int | None
    path: Path | None
    digest: str
    qa: tuple[QA, ...]
