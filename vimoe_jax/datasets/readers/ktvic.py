"""KTVIC: captions of daily life in COCO's layout; ids of pictures may be missing.

Variant "segmented" gives `segment_caption`, whose syllables are joined to words by `_`, as
published: taking the `_` out would give the syllables of "default" with other spacing.
"""

from __future__ import annotations

from collections.abc import Mapping

from vimoe_jax.datasets.annotations import Annotations, Asked
from vimoe_jax.datasets.preparing.files import Files, read_json
from vimoe_jax.datasets.published import Dataset
from vimoe_jax.datasets.readers import coco
from vimoe_jax.datasets.readers.fields import annotations, identity, text
from vimoe_jax.datasets.records import QA

_CAPTION = {"default": "caption", "segmented": "segment_caption"}
_KNOWN = {"id", "image_id", *coco.IMAGE_KEYS, *_CAPTION.values()}
_PATTERNS = {
    "train": ("train_data.json", "ktvic-train_data.json", "ktvic_train_data.json"),
    "test": ("test_data.json", "ktvic-test_data.json", "ktvic_test_data.json"),
}


def read(files: Files, variant: str) -> Mapping[str, Annotations]:
    """See `Dataset.read`."""
    key = _CAPTION[variant]
    made = {}
    for split, names in _PATTERNS.items():
        if path := files.annotation(*names):
            document = read_json(path)
            images = coco.Images(document)

            def one(where: str, row: dict, images: coco.Images = images) -> Asked:
                answers = (text(row, key),)
                return Asked(where, images.of(row), QA(identity(row, "id"), "caption", "", answers))

            made[split] = annotations(files, path, coco.rows(document, path), _KNOWN, one)
    return made


DATASET = Dataset(
    name="ktvic",
    title="KTVIC",
    description="Five captions a picture, written by people, for photographs of daily life in "
    "Vietnam, as they are or segmented into words.",
    citation="""@misc{pham2024ktvic,
  title = {{KTVIC}: A {V}ietnamese Image Captioning Dataset on the Life Domain},
  author = {Pham, Anh-Cuong and Nguyen, Van-Quang and Vuong, Thi-Hong and Ha, Quang-Thuy},
  year = {2024},
  eprint = {2401.08100},
  archiveprefix = {arXiv},
}""",
    licence="none stated; a resource for research",
    homepage="https://arxiv.org/abs/2401.08100",
    task="caption",
    splits=tuple(_PATTERNS),
    expected=("train_data.json", "test_data.json"),
    read=read,
    profile="caption",
    variants=tuple(_CAPTION),
)
