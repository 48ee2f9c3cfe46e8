"""OpenViVQA: open-ended answers; published with objects by id and with lists."""

from __future__ import annotations

from collections.abc import Mapping

from vimoe_jax.datasets.annotations import Annotations
from vimoe_jax.datasets.preparing.files import Files
from vimoe_jax.datasets.published import Dataset
from vimoe_jax.datasets.readers import vqa
from vimoe_jax.datasets.readers.fields import identity

_PATTERNS = {
    "train": ("vlsp2023_train_data.json", "openvivqa_train*.json"),
    "validation": ("vlsp2023_dev_data.json", "openvivqa_dev*.json", "openvivqa_val*.json"),
    "test": ("vlsp2023_test_data.json", "openvivqa_test*.json"),
}


def read(files: Files, variant: str) -> Mapping[str, Annotations]:
    """See `Dataset.read`."""
    return vqa.read(files, _PATTERNS, "vqa", _type)


def _type(row: dict) -> str:
    return identity(row, "QA-type") if row.get("QA-type") is not None else ""


DATASET = Dataset(
    name="openvivqa",
    title="OpenViVQA",
    description="Questions about photographs taken in Vietnam, some about the text in them, "
    "answered in phrases and sentences. The test split was published without answers.",
    citation="""@article{nguyen2023openvivqa,
  title = {{OpenViVQA}: Task, dataset, and multimodal fusion models for visual question answering
           in {V}ietnamese},
  author = {Nguyen, Nghia Hieu and Vo, Duong T. D. and {Van Nguyen}, Kiet and
            Nguyen, Ngan Luu-Thuy},
  journal = {Information Fusion},
  volume = {100},
  pages = {101868},
  year = {2023},
  doi = {10.1016/j.inffus.2023.101868},
}""",
    licence="MIT",
    homepage="https://huggingface.co/datasets/uitnlp/OpenViVQA-dataset",
    task="vqa",
    splits=tuple(_PATTERNS),
    expected=tuple(names[0] for names in _PATTERNS.values()),
    read=read,
    profile="open",
    open_ended=True,
)
