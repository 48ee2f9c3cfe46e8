"""ViCLEVR: reasoning about rendered solids; one CSV file per split, pictures `{image_id}.png`."""

from __future__ import annotations

from collections.abc import Mapping

from vimoe_jax.datasets.annotations import Annotations, Asked, Picture
from vimoe_jax.datasets.preparing.files import Files, read_csv
from vimoe_jax.datasets.published import Dataset
from vimoe_jax.datasets.readers.fields import annotations, identity, text
from vimoe_jax.datasets.records import QA

_COLUMNS = ("image_id", "question", "answer")
_PATTERNS = {
    "train": ("viclevr_train*.csv", "train.csv"),
    "validation": (
        "viclevr_dev*.csv", "viclevr_val*.csv", "dev.csv", "val.csv", "validation.csv",
    ),
    "test": ("viclevr_test*.csv", "test.csv"),
}  # fmt: skip


def read(files: Files, variant: str) -> Mapping[str, Annotations]:
    """See `Dataset.read`."""
    made = {}
    for split, names in _PATTERNS.items():
        if path := files.annotation(*names):
            rows = list(read_csv(path, _COLUMNS))
            made[split] = annotations(files, path, rows, {*_COLUMNS, "", "Unnamed: 0"}, _one)
    return made


def _one(where: str, row: dict) -> Asked:
    name = identity(row, "image_id").strip()
    qa = QA(where, "vqa", text(row, "question"), (text(row, "answer"),))
    return Asked(where, Picture(name, (f"{name}.png", name)), qa)


DATASET = Dataset(
    name="viclevr",
    title="ViCLEVR",
    description="Questions that need reasoning about CLEVR's rendered scenes of solids.",
    citation="""@article{tran2024viclevr,
  title = {{ViCLEVR}: a visual reasoning dataset and hybrid multimodal fusion model for visual
           question answering in {V}ietnamese},
  author = {Tran, Khiem Vinh and Phan, Hao Phu and Nguyen, Kiet Van and Nguyen, Ngan Luu Thuy},
  journal = {Multimedia Systems},
  number = {4},
  pages = {199},
  year = {2024},
  doi = {10.1007/s00530-024-01394-w},
}""",
    licence="none stated; given out by its authors",
    homepage="https://github.com/kvt0012/ViCLEVR",
    task="vqa",
    splits=tuple(_PATTERNS),
    expected=("train.csv", "dev.csv", "test.csv"),
    read=read,
    profile="short",
)
