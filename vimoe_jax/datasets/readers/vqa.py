"""Questions and answers in COCO's layout, as the UIT's and VLSP's datasets are published."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from vimoe_jax.datasets.annotations import Annotations, Asked
from vimoe_jax.datasets.preparing.files import Files, read_json
from vimoe_jax.datasets.readers import coco
from vimoe_jax.datasets.readers.fields import Bad, annotations, identity, text, texts
from vimoe_jax.datasets.records import QA

KNOWN = {"id", "image_id", "question", "answer", "answers", "QA-type", *coco.IMAGE_KEYS}


def read(
    files: Files,
    patterns: Mapping[str, Sequence[str]],
    task: str,
    type_of: Callable[[dict], str | None] = lambda row: "",
    truth: Mapping[str, Mapping[str, object]] | None = None,
) -> dict[str, Annotations]:
    """The annotations of each split that is there.

    Args:
      files: the folder.
      patterns: of annotation files, by split.
      task: of every question.
      type_of: an annotation's question type; None leaves the annotation out.
      truth: answers by split and annotation id, for annotations that have none themselves.
    """
    found = {split: files.annotation(*names) for split, names in patterns.items()}
    made = {}
    for split, path in found.items():
        if path is not None:
            document = read_json(path)
            one = _reader(coco.Images(document), task, type_of, (truth or {}).get(split, {}))
            made[split] = annotations(files, path, coco.rows(document, path), KNOWN, one)
    return made


def _reader(
    images: coco.Images,
    task: str,
    type_of: Callable[[dict], str | None],
    truth: Mapping[str, object],
) -> Callable[[str, dict], Asked | None]:
    def one(where: str, row: dict) -> Asked | None:
        question = text(row, "question")
        name = identity(row, "id")
        kind = type_of(row)
        if kind is None:
            return None
        picture = images.of(row)
        return Asked(where, picture, QA(name, task, question, _answers(row, name, truth), kind))

    return one


def _answers(row: dict, name: str, truth: Mapping[str, object]) -> tuple[str, ...]:
    for key in ("answers", "answer"):
        if row.get(key) is not None:
            return texts(row, key)
    if name not in truth:
        raise Bad("answer: missing")
    return texts({"answer": truth[name]}, "answer")
