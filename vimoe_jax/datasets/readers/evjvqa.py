"""EVJVQA: questions in English, Vietnamese and Japanese, without a field that names it.

Answers of the tests were published apart, as `{annotation id: answer}`, with spaces around
punctuation; an annotation's own answer, where it has one, goes first.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping

from vimoe_jax.base.errors import UserError
from vimoe_jax.datasets.annotations import Annotations
from vimoe_jax.datasets.preparing.files import Files, read_json
from vimoe_jax.datasets.published import Dataset
from vimoe_jax.datasets.readers import vqa

_PATTERNS = {
    "train": ("evjvqa_train.json",),
    "validation": ("evjvqa_dev.json", "evjvqa_val.json", "evjvqa_validation.json"),
    "test": ("evjvqa_public_test.json",),
    "private_test": ("evjvqa_private_test.json",),
}
_TRUTH = {
    "test": ("public_ground_truth.json", "public_test/ground_truth.json"),
    "private_test": ("private_ground_truth.json", "private_test/ground_truth.json"),
}
_JAPANESE = re.compile("[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff]")
_MARKED = re.compile("[đ\u0300-\u036f]")
_WORD = re.compile(r"[^\W\d_]+")
_ENGLISH = frozenset(
    "a an and are at be behind by did do does for from has have how in is it many of on she he "
    "that the their there these they this to was wearing were what when where which who whose why "
    "with you".split()
)


def language(question: str) -> str:
    """The language of a question: "ja", "vi" or "en".

    Japanese has kana or Chinese characters. Vietnamese has more words with marks than English has
    function words: "quán café ở đâu" against "what is the man in front of the café doing".
    """
    if _JAPANESE.search(question):
        return "ja"
    words = _WORD.findall(unicodedata.normalize("NFC", question).lower())
    marked = sum(bool(_MARKED.search(unicodedata.normalize("NFD", word))) for word in words)
    return "vi" if marked > sum(word in _ENGLISH for word in words) else "en"


def read(files: Files, variant: str) -> Mapping[str, Annotations]:
    """See `Dataset.read`."""

    def kind(row: dict) -> str | None:
        found = language(row["question"])
        return found if variant in ("all", found) else None

    return vqa.read(files, _PATTERNS, "vqa", kind, _truth(files))


def _truth(files: Files) -> dict[str, Mapping[str, object]]:
    made = {}
    for split, names in _TRUTH.items():
        if path := files.annotation(*names):
            document = read_json(path)
            if not isinstance(document, dict):
                raise UserError(f"{path}:1: must be an object of answers by annotation id")
            made[split] = document
    return made


DATASET = Dataset(
    name="evjvqa",
    title="UIT-EVJVQA",
    description="Questions in Vietnamese, English and Japanese about photographs taken in Vietnam, "
    "answered in phrases. The language, told from the question's letters, is its type.",
    citation="""@misc{nguyen2023evjvqa,
  title = {{VLSP2022-EVJVQA} Challenge: Multilingual Visual Question Answering},
  author = {Nguyen, Ngan Luu-Thuy and Nguyen, Nghia Hieu and Vo, Duong T. D. and
            Tran, Khanh Quoc and Nguyen, Kiet Van},
  year = {2023},
  eprint = {2302.11752},
  archiveprefix = {arXiv},
}""",
    licence="none stated; data of the VLSP 2022 shared task, for research",
    homepage="https://arxiv.org/abs/2302.11752",
    task="vqa",
    splits=tuple(_PATTERNS),
    expected=tuple(names[0] for names in _PATTERNS.values()),
    read=read,
    profile="open",
    variants=("vi", "all"),
    open_ended=True,
)
