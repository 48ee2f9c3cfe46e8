"""XM3600 (Crossmodal-3600): captions in 36 languages, of which this reads the Vietnamese ones."""

from __future__ import annotations

from collections.abc import Mapping

from vimoe_jax.datasets.annotations import Annotations, Asked, Picture
from vimoe_jax.datasets.preparing.files import Files, read_jsonl
from vimoe_jax.datasets.published import Dataset
from vimoe_jax.datasets.readers.fields import Bad, annotations, identity, texts
from vimoe_jax.datasets.records import QA

_LANGUAGE = "vi"
_KNOWN = {
    "image/key", "image/locale", "ar", "bn", "cs", "da", "de", "el", "en", "es", "fa", "fi", "fil",
    "fr", "he", "hi", "hr", "hu", "id", "it", "ja", "ko", "mi", "nl", "no", "pl", "pt", "quz",
    "ro", "ru", "sv", "sw", "te", "th", "tr", "uk", "vi", "zh",
}  # fmt: skip


def read(files: Files, variant: str) -> Mapping[str, Annotations]:
    """See `Dataset.read`."""
    path = files.annotation("captions.jsonl", "xm3600*.jsonl")
    if path is None:
        return {}
    return {"test": annotations(files, path, list(read_jsonl(path)), _KNOWN, _one)}


def _one(where: str, row: dict) -> Asked:
    key = identity(row, "image/key")
    captions = row.get(_LANGUAGE)
    if not isinstance(captions, dict):
        raise Bad(f"{_LANGUAGE}: missing, or not an object")
    qa = QA(key, "caption", "", texts(captions, "caption"))
    return Asked(where, Picture(key, (f"{key}.jpg",)), qa)


DATASET = Dataset(
    name="xm3600",
    title="XM3600",
    description="Captions written by people for photographs from all over the world. For "
    "evaluation only.",
    citation="""@inproceedings{thapliyal2022crossmodal,
  title = {Crossmodal-3600: A Massively Multilingual Multimodal Evaluation Dataset},
  author = {Thapliyal, Ashish V. and {Pont-Tuset}, Jordi and Chen, Xi and Soricut, Radu},
  booktitle = {Proceedings of the 2022 Conference on Empirical Methods in Natural Language
               Processing},
  pages = {715--729},
  year = {2022},
}""",
    licence="captions CC BY 4.0; the pictures are from Open Images, with terms of their own",
    homepage="https://google.github.io/crossmodal-3600/",
    task="caption",
    splits=("test",),
    expected=("captions.jsonl",),
    read=read,
    profile="caption",
)
