"""UIT-ViIC: captions in COCO's layout, on COCO's pictures."""

from __future__ import annotations

from collections.abc import Mapping

from vimoe_jax.datasets.annotations import Annotations, Asked
from vimoe_jax.datasets.preparing.files import Files, read_json
from vimoe_jax.datasets.published import Dataset
from vimoe_jax.datasets.readers import coco
from vimoe_jax.datasets.readers.fields import annotations, identity, text
from vimoe_jax.datasets.records import QA

_PATTERNS = {
    "train": ("uitviic_captions_train2017.json",),
    "validation": ("uitviic_captions_val2017.json",),
    "test": ("uitviic_captions_test2017.json",),
}


def read(files: Files, variant: str) -> Mapping[str, Annotations]:
    """See `Dataset.read`."""
    made = {}
    for split, names in _PATTERNS.items():
        if path := files.annotation(*names):
            document = read_json(path)
            images = coco.Images(document, coco=True)

            def one(where: str, row: dict, images: coco.Images = images) -> Asked:
                answers = (text(row, "caption"),)
                return Asked(where, images.of(row), QA(identity(row, "id"), "caption", "", answers))

            rows = coco.rows(document, path)
            made[split] = annotations(files, path, rows, {"id", "image_id", "caption"}, one)
    return made


DATASET = Dataset(
    name="uit_viic",
    title="UIT-ViIC",
    description="Captions, mostly five a picture, written by people for COCO's photographs of "
    "sports played with a ball.",
    citation="""@inproceedings{lam2020uitviic,
  title = {{UIT-ViIC}: A Dataset for the First Evaluation on {V}ietnamese Image Captioning},
  author = {Lam, Quan Hoang and Le, Quang Duy and Nguyen, Van Kiet and Nguyen, Ngan Luu-Thuy},
  booktitle = {Advances in Computational Collective Intelligence (ICCCI)},
  year = {2020},
  doi = {10.1007/978-3-030-63007-2_57},
  url = {https://arxiv.org/abs/2002.00175},
}""",
    licence="published for research purposes; the pictures are COCO's, with terms of their own",
    homepage="https://arxiv.org/abs/2002.00175",
    task="caption",
    splits=tuple(_PATTERNS),
    expected=tuple(names[0] for names in _PATTERNS.values()),
    read=read,
    profile="caption",
)
