"""What a model answered, beside what it was asked: the currency of scores and reports."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable
from pathlib import Path

from vimoe_jax.errors import UserError


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


def write(path: Path, predictions: Iterable[Prediction]) -> None:
    """Writes JSONL, whole or not at all."""
    temporary = path.with_suffix(".tmp")
    with open(temporary, "w", encoding="utf-8") as f:
        for p in predictions:
            f.write(json.dumps(dataclasses.asdict(p), ensure_ascii=False) + "\n")
    temporary.replace(path)


def read(path: Path) -> list[Prediction]:
    """Reads what `write` wrote.

    Raises:
      UserError: no such file, or a broken line.
    """
    predictions = []
    try:
        with open(path, encoding="utf-8") as f:
            for number, line in enumerate(f, 1):
                row = json.loads(line)
                predictions.append(Prediction(**{**row, "answers": tuple(row["answers"])}))
    except OSError as e:
        raise UserError(f"{path}: {e.strerror}") from None
    except (ValueError, TypeError, KeyError) as e:
        raise UserError(f"{path}:{number}: not a prediction: {e}") from None
    return predictions
