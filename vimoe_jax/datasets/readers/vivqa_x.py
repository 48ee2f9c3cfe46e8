"""ViVQA-X: answers with explanations, on COCO's pictures; a list of annotations."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from vimoe_jax.datasets.annotations import Annotations, Asked, Malformed
from vimoe_jax.datasets.preparing.files import Files, read_json
from vimoe_jax.datasets.published import Dataset
from vimoe_jax.datasets.readers.fields import annotations, coco_picture, identity, text, texts
from vimoe_jax.datasets.records import QA

_KNOWN = {
    "question", "image_id", "image_name", "explanation", "answer", "question_id", "question_type",
    "answer_type",
}  # fmt: skip
_PATTERNS = {
    "train": ("vivqa-x_train.json", "vivqa_x_train.json"),
    "validation": ("vivqa-x_val.json", "vivqa-x_validation.json", "vivqa_x_val.json"),
    "test": ("vivqa-x_test.json", "vivqa_x_test.json"),
}


def read(files: Files, variant: str) -> Mapping[str, Annotations]:
    """See `Dataset.read`."""
    made = {}
    for split, names in _PATTERNS.items():
        if path := files.annotation(*names):
            made[split] = annotations(files, path, _rows(read_json(path), path), _KNOWN, _one)
    return made


def _rows(document: object, path: Path) -> Iterator[tuple[str, object] | Malformed]:
    if isinstance(document, list):
        yield from ((f"{path.name}: [{i}]", row) for i, row in enumerate(document))
    else:
        yield Malformed(path.name, "not a list of annotations")


def _one(where: str, row: dict) -> Asked:
    picture = coco_picture(row, "image_id", "image_name")
    qa = QA(
        id=identity(row, "question_id"),
        task="vqa",
        question=text(row, "question"),
        answers=(text(row, "answer"),),
        type=text(row, "answer_type"),
        explanations=texts(row, "explanation"),
    )
    return Asked(where, picture, qa)


DATASET = Dataset(
    name="vivqa_x",
    title="ViVQA-X",
    description="Questions about COCO's photographs with short answers and explanations of them, "
    "translated from VQA-X by machine. Yes is both `có` and `đúng`.",
    citation="""@misc{duong2025vivqax,
  title = {An Automated Pipeline for Constructing a {V}ietnamese {VQA-NLE} Dataset},
  author = {Duong, Truong-Binh and Tran, Hoang-Minh and Le-Nguyen, Binh-Nam and
            Duong, Dinh-Thang},
  howpublished = {International Conference on Intelligent Systems and Networks (ICISN)},
  year = {2025},
}""",
    licence="MIT; the pictures are COCO's, with terms of their own",
    homepage="https://github.com/duongtruongbinh/ViVQA-X",
    task="vqa",
    splits=tuple(_PATTERNS),
    expected=("ViVQA-X_train.json", "ViVQA-X_val.json", "ViVQA-X_test.json"),
    read=read,
    profile="short",
)
