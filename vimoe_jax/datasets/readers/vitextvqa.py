"""ViTextVQA: text in photographs. `ViTextVQA_test.json` is a form; `…_test_gt.json` has answers."""

from __future__ import annotations

from collections.abc import Mapping

from vimoe_jax.datasets.annotations import Annotations
from vimoe_jax.datasets.preparing.files import Files
from vimoe_jax.datasets.published import Dataset
from vimoe_jax.datasets.readers import vqa

_PATTERNS = {
    "train": ("vitextvqa_train.json", "train.json"),
    "validation": (
        "vitextvqa_dev.json", "vitextvqa_val.json", "dev.json", "val.json", "validation.json",
    ),
    "test": ("vitextvqa_test_gt*.json", "test_gt.json", "vitextvqa_test.json", "test.json"),
}  # fmt: skip


def read(files: Files, variant: str) -> Mapping[str, Annotations]:
    """See `Dataset.read`."""
    return vqa.read(files, _PATTERNS, "ocr_vqa")


DATASET = Dataset(
    name="vitextvqa",
    title="ViTextVQA",
    description="Questions about the text in photographs taken in Vietnam, with one or several "
    "answers.",
    citation="""@misc{nguyen2024vitextvqa,
  title = {{ViTextVQA}: A Large-Scale Visual Question Answering Dataset for Evaluating {V}ietnamese
           Text Comprehension in Images},
  author = {Nguyen, Quan Van and Tran, Dan Quang and Pham, Huy Quang and Nguyen, Thang Kien-Bao and
            Nguyen, Nghia Hieu and Nguyen, Kiet Van and Nguyen, Ngan Luu-Thuy},
  year = {2024},
  eprint = {2404.10652},
  archiveprefix = {arXiv},
}""",
    licence="for research, after accepting the conditions on its page",
    homepage="https://huggingface.co/datasets/minhquan6203/ViTextVQA",
    task="ocr_vqa",
    splits=tuple(_PATTERNS),
    expected=("ViTextVQA_train.json", "ViTextVQA_dev.json", "ViTextVQA_test_gt.json"),
    read=read,
    profile="ocr",
    open_ended=True,
)
