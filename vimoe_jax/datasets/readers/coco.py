"""The layout of COCO's annotation files, that most Vietnamese datasets follow in one form or other.

    {"images": [{"id": 7, "file_name": "a.jpg"}], "annotations": [{"id": 1, "image_id": 7, …}]}

Either may also be an object by id: `{"images": {"7": "a.jpg"}, "annotations": {"1": {…}}}`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from vimoe_jax.datasets.annotations import Malformed, Picture
from vimoe_jax.datasets.readers.fields import Bad, coco_picture, identity, text

IMAGE_KEYS = ("file_name", "filename")
_NUMBER = re.compile(r"[0-9]+")


class Images:
    """The pictures that a file lists, by what its annotations call them.

    A picture without an id is called by its file name, with or without ending, or by the number
    that the name is. What could be two pictures is neither.

    Args:
      document: a parsed file.
      coco: ids are COCO's numbers; pictures need not be listed then.
    """

    def __init__(self, document: object, *, coco: bool = False):
        listed = document.get("images") if isinstance(document, dict) else None
        self._coco = coco
        self._listed = listed is not None
        self._bad: dict[str, str] = {}
        self._pictures: dict[str, Picture] = {}
        for entry in _entries(listed):
            try:
                picture = self._picture(entry)
            except Bad as e:
                if isinstance(entry.get("id"), str | int):
                    self._bad[str(entry["id"])] = str(e)
                continue
            for name in _names(entry, picture):
                if self._pictures.setdefault(name, picture) != picture:
                    self._bad[name] = "is listed with two file names"

    def of(self, row: dict) -> Picture:
        """The picture of an annotation.

        Raises:
          Bad: it names none, or one that is not listed as it should be.
        """
        key = "image_id" if row.get("image_id") is not None else _name_key(row) or "image_id"
        name = identity(row, key)
        if name in self._bad:
            raise Bad(f"{key}: picture {name!r:.80}: {self._bad[name]}")
        if name in self._pictures:
            return self._pictures[name]
        if self._listed:
            raise Bad(f"{key}: no picture {name!r:.80} is listed")
        return coco_picture(row, key) if self._coco else Picture(name, (name,))

    def _picture(self, entry: dict) -> Picture:
        name_key = _name_key(entry)
        if self._coco:
            return coco_picture(entry, "id", name_key)
        name = text(entry, name_key or "filename")
        if not name.strip():
            raise Bad(f"{name_key}: empty")
        return Picture(name if entry.get("id") is None else identity(entry, "id"), (name,))


def rows(document: object, path: Path) -> Iterator[tuple[str, object] | Malformed]:
    """The annotations of a file, each after `file: annotations[…]`; each object has an `id`."""
    listed = document.get("annotations") if isinstance(document, dict) else None
    if isinstance(listed, dict):
        for key, row in listed.items():
            where = f"{path.name}: annotations[{key!r:.80}]"
            yield where, {**row, "id": key} if isinstance(row, dict) else row
    elif isinstance(listed, list):
        for i, row in enumerate(listed):
            where = f"{path.name}: annotations[{i}]"
            if isinstance(row, dict) and row.get("id") is None:
                row = {**row, "id": f"annotations[{i}]"}
            yield where, row
    else:
        yield Malformed(path.name, "annotations: missing, or no list and no object")


def _entries(listed: object) -> Iterator[dict]:
    if isinstance(listed, dict):
        for key, value in listed.items():
            entry = value if isinstance(value, dict) else {"filename": value}
            yield {**entry, "id": key}
    elif isinstance(listed, list):
        yield from (entry for entry in listed if isinstance(entry, dict))


def _name_key(row: dict) -> str | None:
    return next((key for key in IMAGE_KEYS if row.get(key) is not None), None)


def _names(entry: dict, picture: Picture) -> set[str]:
    """What annotations may call a picture."""
    if entry.get("id") is not None:
        return {picture.id}
    stem = PurePosixPath(picture.id).stem
    return {picture.id, stem, stem.lstrip("0") or "0" if _NUMBER.fullmatch(stem) else stem}
