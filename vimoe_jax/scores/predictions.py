"""What a model answered, beside what it was asked: the currency of scores and reports."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from vimoe_jax.base.errors import UserError
from vimoe_jax.base.files import replacing


@dataclasses.dataclass(frozen=True)
class Prediction:
    """One answered question.

    Attributes:
      record_id: of the picture.
      record_index: of the picture in its split.
      qa_id: of the question.
      task: "caption", "vqa" or "ocr_vqa".
      type: the dataset's question type, or "".
      question: empty for captions.
      answers: all references.
      prediction: the model's.
    """

    record_id: str
    record_index: int
    qa_id: str
    task: str
    type: str
    question: str
    answers: tuple[str, ...]
    prediction: str


_TEXTS = ("record_id", "qa_id", "task", "type", "question", "prediction")


def write(path: Path, predictions: Iterable[Prediction]) -> None:
    """Writes JSONL, whole or not at all.

    Raises:
      UserError: the file cannot be written.
    """
    # Half a surrogate pair has no UTF-8: it is written as the escape that JSON has for it.
    with replacing(path, errors="backslashreplace") as f:
        for p in predictions:
            f.write(json.dumps(dataclasses.asdict(p), ensure_ascii=False) + "\n")


def read(path: Path) -> list[Prediction]:
    """Reads what `write` wrote.

    Raises:
      UserError: no such file, or a broken line.
    """
    predictions, number = [], 0
    try:
        # By bytes, so that a line that is no UTF-8 is counted as well. Text lines would also end at
        # U+2028 and its like, which JSON leaves unescaped.
        lines = Path(path).read_bytes().splitlines()
    except OSError as e:
        raise UserError(f"{path}: {e.strerror}") from None
    for number, line in enumerate(lines, 1):
        try:
            predictions.append(_parse(json.loads(line.decode("utf-8"))))
        except (ValueError, RecursionError) as e:
            raise UserError(f"{path}:{number}: not a prediction: {e}") from None
    return predictions


def _parse(row: Any) -> Prediction:
    """One line's object; ValueError names what is wrong with it."""
    names = {f.name for f in dataclasses.fields(Prediction)}
    if not isinstance(row, dict):
        raise ValueError("no JSON object")
    if row.keys() != names:
        raise ValueError(f"fields missing or unknown: {', '.join(sorted(names ^ row.keys()))}")
    for name in _TEXTS:
        if not isinstance(row[name], str):
            raise ValueError(f"{name} is no text")
    if type(row["record_index"]) is not int:
        raise ValueError("record_index is no integer")
    answers = row["answers"]
    if not isinstance(answers, list) or not all(isinstance(a, str) for a in answers):
        raise ValueError("answers is no list of texts")
    return Prediction(**{**row, "answers": tuple(answers)})
