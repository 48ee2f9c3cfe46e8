"""COCO-35L: COCO's captions, translated by machine; one row per caption and language."""

from __future__ import annotations

import re
from collections.abc import Mapping

from vimoe_jax.datasets.annotations import Annotations, Asked
from vimoe_jax.datasets.preparing.files import Files, read_jsonl
from vimoe_jax.datasets.published import Dataset
from vimoe_jax.datasets.readers.fields import Bad, annotations, coco_picture, text
from vimoe_jax.datasets.records import QA

_LANGUAGE = "vi"
_KNOWN = {
    "image_id", "src_lang", "trg_lang", "caption_tokenized", "translation_tokenized",
    "backtranslation_tokenized",
}  # fmt: skip
_PATTERNS = {
    "train": ("train_35_caption.jsonl", "train_35*.jsonl"),
    "validation": ("dev_35_caption.jsonl", "dev_35*.jsonl", "val_35*.jsonl"),
}
_ID = re.compile(r"([0-9]{1,12})_[1-9][0-9]?")


def read(files: Files, variant: str) -> Mapping[str, Annotations]:
    """See `Dataset.read`."""
    made = {}
    for split, names in _PATTERNS.items():
        if path := files.annotation(*names):
            # 34 of 35 rows are of other languages, too many to hold.
            rows = [(where, row) for where, row in read_jsonl(path) if not _foreign(row)]
            made[split] = annotations(files, path, rows, _KNOWN, _one)
    return made


def _foreign(row: object) -> bool:
    """Whether a row names another language."""
    return isinstance(row, dict) and row.get("trg_lang", _LANGUAGE) != _LANGUAGE


def _one(where: str, row: dict) -> Asked:
    text(row, "trg_lang")
    name = text(row, "image_id")
    match = _ID.fullmatch(name)
    if not match:
        raise Bad("image_id: must be a number of COCO's and a caption's, as in 42_1")
    picture = coco_picture({"image_id": match[1]}, "image_id")
    return Asked(where, picture, QA(name, "caption", "", (text(row, "translation_tokenized"),)))


DATASET = Dataset(
    name="coco35l",
    title="COCO-35L",
    description="Captions of COCO's photographs, translated into Vietnamese by machine and "
    "tokenized: spaces stand around punctuation.",
    citation="""@inproceedings{thapliyal2022crossmodal,
  title = {Crossmodal-3600: A Massively Multilingual Multimodal Evaluation Dataset},
  author = {Thapliyal, Ashish V. and {Pont-Tuset}, Jordi and Chen, Xi and Soricut, Radu},
  booktitle = {Proceedings of the 2022 Conference on Empirical Methods in Natural Language
               Processing},
  pages = {715--729},
  year = {2022},
}""",
    licence="CC BY 4.0; the pictures are COCO's, with terms of their own",
    homepage="https://google.github.io/crossmodal-3600/",
    task="caption",
    splits=tuple(_PATTERNS),
    expected=("train_35_caption.jsonl", "dev_35_caption.jsonl"),
    read=read,
    profile="caption",
)
