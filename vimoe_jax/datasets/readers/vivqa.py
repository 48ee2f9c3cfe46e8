"""ViVQA: `train.csv` and `test.csv` on COCO's pictures; the first column has no name."""

from __future__ import annotations

from collections.abc import Mapping

from vimoe_jax.datasets.annotations import Annotations, Asked
from vimoe_jax.datasets.preparing.files import Files, read_csv
from vimoe_jax.datasets.published import Dataset
from vimoe_jax.datasets.readers.fields import Bad, annotations, coco_picture, text
from vimoe_jax.datasets.records import QA

TYPES = ("object", "number", "color", "location")
_COLUMNS = ("question", "answer", "img_id", "type")
_INDEX = ("", "Unnamed: 0")  # as pandas writes and reads it
_PATTERNS = {
    "train": ("train.csv", "vivqa_train.csv", "vivqa-train.csv"),
    "test": ("test.csv", "vivqa_test.csv", "vivqa-test.csv"),
}


def read(files: Files, variant: str) -> Mapping[str, Annotations]:
    """See `Dataset.read`."""
    made = {}
    for split, names in _PATTERNS.items():
        if path := files.annotation(*names):
            rows = list(read_csv(path, _COLUMNS))
            made[split] = annotations(files, path, rows, {*_COLUMNS, *_INDEX}, _one)
    return made


def _one(where: str, row: dict) -> Asked:
    kind = text(row, "type").strip()
    if kind not in ("0", "1", "2", "3"):
        raise Bad(f"type: must be 0 to 3, not {kind!r:.20}")
    picture = coco_picture({"img_id": text(row, "img_id").strip()}, "img_id")
    name = next((row[key] for key in _INDEX if row.get(key)), where)
    answers = (text(row, "answer"),)
    qa = QA(name, "vqa", text(row, "question"), answers, TYPES[int(kind)])
    return Asked(where, picture, qa)


DATASET = Dataset(
    name="vivqa",
    title="ViVQA",
    description="Short questions about objects, numbers, colours and places in COCO's photographs, "
    "translated from COCO-QA by machine and checked by people. There is no validation split, and "
    "1,376 pictures are in both splits.",
    citation="""@inproceedings{tran2021vivqa,
  title = {{ViVQA}: {V}ietnamese Visual Question Answering},
  author = {Tran, Khanh Quoc and Nguyen, An Trong and Le, An Tran-Hoai and Nguyen, Kiet Van},
  booktitle = {Proceedings of the 35th Pacific Asia Conference on Language, Information and
               Computation},
  year = {2021},
  pages = {683--691},
  url = {https://aclanthology.org/2021.paclic-1.72},
}""",
    licence="none stated; the pictures are COCO's, with terms of their own",
    homepage="https://github.com/kh4nh12/ViVQA",
    task="vqa",
    splits=tuple(_PATTERNS),
    expected=("train.csv", "test.csv"),
    read=read,
    profile="short",
)
