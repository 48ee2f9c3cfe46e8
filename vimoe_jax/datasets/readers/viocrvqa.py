"""ViOCRVQA: title, author, publisher, translator and genre, asked of book covers."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping

from vimoe_jax.datasets.annotations import Annotations
from vimoe_jax.datasets.preparing.files import Files
from vimoe_jax.datasets.published import Dataset
from vimoe_jax.datasets.readers import vqa

_PATTERNS = {
    "train": ("viocrvqa_train.json", "train.json"),
    "validation": (
        "viocrvqa_dev.json", "viocrvqa_val.json", "dev.json", "val.json", "validation.json",
    ),
    "test": ("viocrvqa_test.json", "test.json"),
}  # fmt: skip

# The first that fits: "tên tác giả" asks for the author, "người dịch … cuốn sách" for neither the
# author nor the title.
_FIELDS = (
    ("translator", r"dịch|chuyển (đổi|tải|ngữ)|ngôn ngữ khác"),
    ("genre", r"thể loại|(thuộc|vào) (dạng|loại)|phân loại"),
    ("publisher", r"xuất bản|phát hành|ấn hành|sản xuất|nhà in|công ty|(cho|được|đã) in\b|in ra"),
    ("author", r"tác giả|viết|sáng (tác|tạo|lập)|phát (minh|triển)|soạn thảo|biên (tập|soạn)"
               r"|tạo ra|đặt nền móng"),
    ("title", r"\btên\b|tựa|nhan đề|tiêu đề|gọi là"),
)  # fmt: skip
_RULES = [(field, re.compile(pattern)) for field, pattern in _FIELDS]


def field(question: str) -> str:
    """What of the cover a question asks for: "title", "author", …; "" if it fits no rule."""
    plain = " ".join(unicodedata.normalize("NFC", question).lower().split())
    return next((name for name, rule in _RULES if rule.search(plain)), "")


def read(files: Files, variant: str) -> Mapping[str, Annotations]:
    """See `Dataset.read`."""
    return vqa.read(files, _PATTERNS, "ocr_vqa", lambda row: field(row["question"]))


DATASET = Dataset(
    name="viocrvqa",
    title="ViOCRVQA",
    description="Book covers, asked for title, author, publisher, translator and genre in 240 "
    "wordings. Every answer of the test split is a placeholder.",
    citation="""@misc{pham2024viocrvqa,
  title = {{ViOCRVQA}: Novel Benchmark Dataset and Vision Reader for Visual Question Answering by
           Understanding {V}ietnamese Text in Images},
  author = {Pham, Huy Quang and Nguyen, Thang Kien-Bao and Nguyen, Quan Van and Tran, Dan Quang and
            Nguyen, Nghia Hieu and Nguyen, Kiet Van and Nguyen, Ngan Luu-Thuy},
  year = {2024},
  eprint = {2404.18397},
  archiveprefix = {arXiv},
}""",
    licence="freely available for research purposes",
    homepage="https://github.com/qhnhynmm/ViOCRVQA",
    task="ocr_vqa",
    splits=tuple(_PATTERNS),
    expected=("train.json", "dev.json", "test.json"),
    read=read,
    profile="ocr",
)
