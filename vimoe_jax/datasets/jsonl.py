"""A user's own pictures: one JSON object per line.

    {"image": "a.jpg", "task": "vqa", "question": "con mèo màu gì", "answers": ["đen"]}

Several pictures are a list, `"images": ["a.jpg", "b.jpg"]`; a line about text alone has `"images":
[]`.
`task` is "caption", "vqa" or "ocr_vqa"; optional are `id`, `type` (for scores per type) and
`split` and `explanations` (a list); null is as good as absent. A caption may stand as
`"caption": "…"` in place of `answers`. Paths are relative to the file. Lines with the same pictures
become one record, its captions the references of one question; lines without pictures are records
of their own.
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

_KEYS = {
    "image", "images", "task", "question", "answers", "caption", "id", "type", "split",
    "explanations",
}  # fmt: skip
_SHOWN = 10  # warnings printed; the rest is counted


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
        by_pictures: dict[tuple[str, ...] | int, list[QA]] = {}
        for number, row in self._rows(max_bad):
            unknown.update(set(row) - _KEYS)
            self.splits[row.get("split", "")] += 1
            if split is None or row.get("split", "") == split:
                key = tuple(row["images"]) or number
                by_pictures.setdefault(key, []).append(_qa(number, row, ids))
        self._records = [
            (self._name(key), self._paths(key), _merge_captions(qa))
            for key, qa in by_pictures.items()
        ]
        if not quiet:
            self._warn(unknown)
        if not self._records:
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
        return len(self._records)

    def __getitem__(self, index: int) -> Record:
        name, paths, qa = self._records[index]
        try:
            return Record(name, tuple(path.read_bytes() for path in paths), tuple(qa))
        except OSError as e:
            raise BadRecord(f"{e.filename}: {e.strerror}") from None

    def _paths(self, key: tuple[str, ...] | int) -> tuple[Path, ...]:
        """The pictures' files."""
        return tuple(self.path.parent / name for name in key) if isinstance(key, tuple) else ()

    def _name(self, key: tuple[str, ...] | int) -> str:
        """What messages call a record: its pictures' paths, else its line."""
        return " + ".join(map(str, self._paths(key))) or f"{self.path}:{key}"

    def name(self, index: int) -> str:
        """The id of a record, without opening its pictures."""
        return self._records[index][0]

    def questions(self) -> Iterator[QA]:
        """All questions, without opening pictures."""
        for _, _, qa in self._records:
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
                    for image in row["images"]:
                        if image not in exists:
                            exists[image] = os.path.isfile(self.path.parent / image)
                    missing = [image for image in row["images"] if not exists[image]]
                    if not missing:
                        yield number, row
                        continue
                    complaint = f"image: no such file: {missing[0]}"
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
    complaint = _complaint(row)
    if complaint is None and "images" not in row:
        row["images"] = [row["image"]]
    return row, complaint


def _complaint(row: dict) -> str | None:
    for key in ("image", "task", "question", "type", "split"):
        if key in row and not isinstance(row[key], str):
            return f"{key}: must be a string"
    images = row.get("images", [row.get("image")])
    if "image" in row and "images" in row:
        return "images: stands beside image; one of them"
    if not isinstance(images, list) or not all(isinstance(i, str) for i in images if i is not None):
        return "images: must be a list of strings"
    if not all(images):
        return 'image: missing or empty (a line about text alone has "images": [])'
    if any("\0" in image for image in images):
        return "image: not a path"
    for key in ("task", "answers"):
        if not row.get(key):
            return f"{key}: missing or empty"
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
