"""A user's own pictures: one JSON object a line.

    {"image": "a.jpg", "task": "vqa", "question": "con mèo màu gì", "answers": ["đen"]}

`task` is "caption", "vqa" or "ocr_vqa"; optional are `id`, `type` (for scores per type) and
`split` and `explanations` (a list); null is as good as absent. A caption may stand as
`"caption": "…"` in place of `answers`. Paths are relative to the file. Lines of the same picture
become one record, its captions the references of one question.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from vimoe_jax.base.errors import UserError
from vimoe_jax.datasets.records import QA, TASKS, BadRecord, Record
from vimoe_jax.text.normalize import normalize

_KEYS = {"image", "task", "question", "answers", "caption", "id", "type", "split", "explanations"}
_SHOWN = 10  # warnings of one kind; the rest is counted


class JsonlSource:
    """The records of a JSONL file, or of one `split` of it.

    Everything but the pictures' contents is checked at opening.

    Attributes:
      path: the file.
      skipped: a message for each bad line (of any split), `file:line: reason`.
      splits: good lines by the name of their split, "" where none is given.

    Raises:
      UserError: no such file, nothing left in it, or more than `max_bad` bad lines.
    """

    def __init__(
        self,
        path: str | Path,
        split: str | None = None,
        *,
        max_bad: int = 0,
        quiet: bool = False,
    ):
        self.path = Path(path)
        self.skipped: list[str] = []
        self.splits: Counter[str] = Counter()
        unknown: Counter[str] = Counter()
        ids: Counter[str] = Counter()
        by_image: dict[str, list[QA]] = {}
        for number, row in self._rows(max_bad):
            unknown.update(set(row) - _KEYS)
            self.splits[row.get("split", "")] += 1
            if split is None or row.get("split", "") == split:
                by_image.setdefault(row["image"], []).append(_qa(number, row, ids))
        self._images = [
            (self.path.parent / image, _merge_captions(qa)) for image, qa in by_image.items()
        ]
        if not quiet:
            self._warn(unknown)
        if not self._images:
            have = ", ".join(map(repr, sorted(self.splits))) or "no good line"
            wanted = "" if split is None else f" of split {split!r}"
            raise UserError(f"{path}: no records{wanted} (the file has {have})")

    def _warn(self, unknown: Counter[str]) -> None:
        if unknown:
            keys = ", ".join(f"{k} ({n}×)" for k, n in sorted(unknown.items()))
            print(f"warning: {self.path}: keys not used: {keys}", file=sys.stderr)
        for message in self.skipped[:_SHOWN]:
            print(f"warning: skipped {message}", file=sys.stderr)
        if (more := len(self.skipped) - _SHOWN) > 0:
            print(f"warning: skipped {more} more lines of {self.path}", file=sys.stderr)

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> Record:
        path, qa = self._images[index]
        try:
            return Record(str(path), path.read_bytes(), tuple(qa))
        except OSError as e:
            raise BadRecord(f"{path}: {e.strerror}") from None

    def name(self, index: int) -> str:
        """The picture's path."""
        return str(self._images[index][0])

    def questions(self) -> Iterator[QA]:
        """All questions, without opening pictures."""
        for _, qa in self._images:
            yield from qa

    def _rows(self, max_bad: int) -> Iterator[tuple[int, dict]]:
        """Checked lines with their numbers; bad ones go to `skipped`."""
        try:
            file = open(self.path, "rb")
        except OSError as e:
            raise UserError(f"{self.path}: {e.strerror}") from None
        exists: dict[str, bool] = {}
        with file:
            for number, line in enumerate(file, 1):
                if not line.strip():
                    continue
                row, complaint = _parse(line)
                if complaint is None:
                    image = row["image"]
                    if image not in exists:
                        exists[image] = os.path.isfile(self.path.parent / image)
                    if exists[image]:
                        yield number, row
                        continue
                    complaint = f"image: no such file: {image}"
                message = f"{self.path}:{number}: {complaint}"
                if len(self.skipped) >= max_bad:
                    note = f" (one more than the {max_bad} allowed)" if max_bad else ""
                    raise UserError(message + note)
                self.skipped.append(message)


def _qa(number: int, row: dict, ids: Counter[str]) -> QA:
    """A checked line; an id that came before (often the picture's) gets a number to be unique."""
    name = str(row.get("id", f"line{number}"))
    ids[name] += 1
    return QA(
        id=name if ids[name] == 1 else f"{name}/{ids[name]}",
        task=row["task"],
        question=row.get("question", ""),
        answers=tuple(row["answers"]),
        type=row.get("type", ""),
        explanations=tuple(row.get("explanations", ())),
    )


def _merge_captions(qa: list[QA]) -> list[QA]:
    """All captions of a picture as one QA with several references, where the first one stood."""
    captions = [q for q in qa if q.task == "caption"]
    if len(captions) < 2:
        return qa
    answers = tuple(dict.fromkeys(a for q in captions for a in q.answers))
    merged = dataclasses.replace(captions[0], answers=answers)
    return [
        merged if q is captions[0] else q for q in qa if q.task != "caption" or q is captions[0]
    ]


def _parse(line: bytes) -> tuple[dict, str | None]:
    """A line as a dict, and what is wrong with it (None if nothing is)."""
    try:
        row = json.loads(line.decode("utf-8-sig"))
        if rb"\u" in line:
            json.dumps(row, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return {}, "broken JSON: half a surrogate pair"
    except UnicodeDecodeError:
        return {}, "not UTF-8"
    except json.JSONDecodeError as e:
        return {}, f"broken JSON: {e.msg} at column {e.colno}"
    except RecursionError:
        return {}, "broken JSON: nested too deeply"
    except ValueError as e:  # a number of thousands of digits
        return {}, f"broken JSON: {e}"
    if not isinstance(row, dict):
        return {}, "not a JSON object"
    row = {key: value for key, value in row.items() if value is not None}
    if row.get("task") == "caption" and "answers" not in row and "caption" in row:
        row["answers"] = [row["caption"]]
    return row, _complaint(row)


def _complaint(row: dict) -> str | None:
    for key in ("image", "task", "question", "type", "split"):
        if key in row and not isinstance(row[key], str):
            return f"{key}: must be a string"
    for key in ("image", "task", "answers"):
        if not row.get(key):
            return f"{key}: missing or empty"
    if "\0" in row["image"]:
        return "image: not a path"
    if not isinstance(row.get("id", ""), str | int):
        return "id: must be a string or a number"
    if row["task"] not in TASKS:
        return f"task: must be one of {', '.join(TASKS)}, not {row['task']!r}"
    answers = row["answers"]
    if not isinstance(answers, list) or not all(isinstance(a, str) for a in answers):
        return "answers: must be a list of strings"
    if not all(map(normalize, answers)):
        return "answers: an answer is empty"
    why = row.get("explanations", [])
    if not isinstance(why, list) or not all(isinstance(e, str) and normalize(e) for e in why):
        return "explanations: must be a list of strings, none empty"
    if row["task"] != "caption" and not normalize(row.get("question", "")).rstrip("?？ "):
        return "question: missing or empty"
    return None
