"""Fields of one published annotation, checked; and annotations, one after another."""

import dataclasses
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path

from vimoe_jax.datasets.annotations import Annotations, Asked, Malformed, Picture
from vimoe_jax.datasets.preparing.files import Files, coco_number

_HALF = re.compile("[\ud800-\udfff]")
_DIGITS = re.compile(r"[0-9]{1,12}")


class Bad(Exception):
    """An annotation that cannot be read as one; the message is the reason, beginning with a key."""


def text(row: Mapping[str, object], key: str) -> str:
    """A string, perhaps empty, that can be written as UTF-8."""
    return _text(row.get(key), key)


def texts(row: Mapping[str, object], key: str) -> tuple[str, ...]:
    """A list of strings with at least one in it, or a single string."""
    value = row.get(key)
    if not isinstance(value, list):
        return (_text(value, key),)
    if not value:
        raise Bad(f"{key}: an empty list")
    return tuple(_text(item, key) for item in value)


def identity(row: Mapping[str, object], key: str) -> str:
    """A number or a string that identifies something; 12 and "12" are the same."""
    value = row.get(key)
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    name = _text(value, key)
    if not name.strip():
        raise Bad(f"{key}: empty")
    return name


def coco_picture(row: Mapping[str, object], key: str, name_key: str | None = None) -> Picture:
    """A picture by its number in COCO; its file name, where there is one, must not disagree."""
    digits = identity(row, key)
    if not _DIGITS.fullmatch(digits) or not int(digits):
        raise Bad(f"{key}: must be a number of COCO's")
    number = int(digits)
    if name_key is None or row.get(name_key) is None:
        return Picture(str(number), coco=number)
    name = text(row, name_key)
    stem = name.rpartition(".")[0]
    named = int(stem) if _DIGITS.fullmatch(stem) else coco_number(name)
    if named not in (None, number):
        raise Bad(f"{name_key}: is of picture {named}, not of {number}")
    return Picture(str(number), (name,) if named is None else (), number)


def annotations(
    files: Files,
    path: Path,
    rows: Iterable[tuple[str, object] | Malformed],
    known: Collection[str],
    read: Callable[[str, dict], Asked | None],
) -> Annotations:
    """Rows of a file as annotations.

    Args:
      files: where keys that are not known get counted, as `file: key`.
      path: of the file.
      rows: with what to call them; or what is wrong with them already.
      known: keys whose meaning the reader knows, even if it does not use them.
      read: makes an annotation of a row, or none if it is not of the chosen variant; raises
        `Bad`. An id that came before gets a number.
    """
    ids: set[str] = set()
    for item in rows:
        if isinstance(item, Malformed):
            yield item
            continue
        where, row = item
        try:
            if not isinstance(row, dict):
                raise Bad("not an object")
            files.ignored.update(f"{path.name}: {key!r:.80}" for key in row if key not in known)
            asked = read(where, row)
        except Bad as e:
            yield Malformed(where, str(e))
            continue
        if asked is not None:
            yield dataclasses.replace(
                asked, qa=dataclasses.replace(asked.qa, id=_unique(asked.qa.id, ids))
            )


def _unique(name: str, taken: set[str]) -> str:
    made, count = name, 1
    while made in taken:
        count += 1
        made = f"{name}/{count}"
    taken.add(made)
    return made


def _text(value: object, key: str) -> str:
    if value is None:
        raise Bad(f"{key}: missing")
    if not isinstance(value, str):
        raise Bad(f"{key}: must be a string, not {type(value).__name__}")
    if _HALF.search(value):
        raise Bad(f"{key}: half a surrogate pair")
    return value
