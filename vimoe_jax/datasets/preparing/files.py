"""A folder of files as their authors published them: found by name, parsed with one-line errors.

Two promises. A picture is only ever given to the annotation that names it: a name or a number that
fits several different files is an error, never a guess. And whatever bytes a file holds, parsing
it either succeeds or raises one `UserError` that names the place.
"""

from __future__ import annotations

import csv
import filecmp
import fnmatch
import io
import json
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

from vimoe_jax.base.errors import UserError
from vimoe_jax.datasets.annotations import Malformed, Picture

_EXTENSIONS = ("jpg", "jpeg", "png", "webp", "bmp", "gif")
_COCO = re.compile(r"(?:coco_(?:train|val|test)(?:2014|2015|2017)_)?(\d{12})", re.ASCII)
_WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+")
_SPLITS = {
    "train": ("train",), "training": ("train",), "trainval": ("train", "validation"),
    "val": ("validation",), "valid": ("validation",), "validation": ("validation",),
    "dev": ("validation",), "development": ("validation",),
    "test": ("test",), "testing": ("test",),
}  # fmt: skip
_MAX_FILE = 512 << 20  # bytes; the largest published annotation file has a tenth of it
_MAX_LINE = 8 << 20  # bytes of a JSONL line; XM3600's have all captions in 36 languages
_MAX_DIGITS = 20


class NoPicture(Exception):
    """No file can be given to an annotation; the message is the reason, the same for all alike."""


class Files:
    """All files under a folder, scanned once.

    Links are followed, each folder is entered once, hidden files and folders are left out. Look-up
    is by name whatever its case and Unicode form.

    Attributes:
      root: the folder.
      ignored: how often readers found keys or columns that they do not use, by `file: key`.

    Raises:
      UserError: no such folder, or one in it that cannot be read.
    """

    def __init__(self, root: str | os.PathLike[str]):
        self.root = Path(root)
        self.ignored: Counter[str] = Counter()
        paths = sorted(_walk(self.root), key=lambda p: (len(p.parts), p.parts))
        self._name = self.root.resolve().name
        self._others = [p for p in paths if not _split_name(p.name)[1]]
        self._by_stem: dict[str, list[PurePosixPath]] = {}
        for path in paths:
            self._by_stem.setdefault(_fold(_split_name(path.name)[0]), []).append(path)

    def annotation(self, *patterns: str) -> Path | None:
        """The file whose base name fits a pattern; None if there is none.

        Args:
          *patterns: of `fnmatch`, case left aside; the first that fits a file decides. One with
            folders in it (`public_test/truth.json`) has to fit as many of the path's last.

        Raises:
          UserError: several files fit, none lies less deep than the others, and they differ.
        """
        for pattern in map(_fold, patterns):
            parts = pattern.count("/") + 1
            fit = [
                path
                for path in self._others
                if fnmatch.fnmatchcase(_fold("/".join(path.parts[-parts:])), pattern)
            ]
            found = [p for p in map(self.root.joinpath, fit) if p.is_file()]
            found = [p for p in found if len(p.parts) == len(found[0].parts)]
            for other in found[1:]:
                if not _same(found[0], other):
                    raise UserError(f"{found[0]} and {other} differ; leave only one of them there")
            if found:
                return found[0]
        return None

    def picture(self, picture: Picture, split: str) -> Path:
        """The file of a picture.

        A name with a folder in it fits only files in a folder of that name. Pictures known by name
        alone are not looked for in folders of other splits: publishers number anew in each.

        Args:
          picture: as an annotation names it.
          split: of the annotation: of several files, those in a folder named for it are meant.

        Raises:
          NoPicture: "missing image", or "ambiguous image": several files fit, and differ.
        """
        if picture.coco is not None:
            for fit in self._by_number(picture.coco):
                if fit:
                    return self._one_of(fit, split)
        for name in picture.names:
            for fit in self._by_name(name):
                fit = [p for p in fit if split in (roles := _roles(p)) or not roles]
                if fit:
                    return self._one_of(fit, split)
        raise NoPicture("missing image")

    def _by_number(self, number: int) -> Iterator[list[PurePosixPath]]:
        """Files of a COCO number, in the order of how sure one can be."""
        if not 0 <= number < 10**12:
            return
        years = [f"{s}{y}" for s in ("train", "val", "test") for y in (2014, 2015, 2017)]
        stems = [f"{prefix}{number:012}" for prefix in ("", *(f"coco_{y}_" for y in years))]
        padded = [p for stem in stems for p in self._by_stem.get(stem, ())]
        yield self._present([p for p in padded if _split_name(p.name)[1]])
        # COCO has only JPEG: a bare number with another ending is some other dataset's picture.
        bare = self._by_stem.get(str(number), ())
        jpeg = ("jpg", "jpeg")
        yield self._present([p for p in bare if _split_name(p.name)[1].lower() in jpeg])

    def _by_name(self, name: str) -> Iterator[list[PurePosixPath]]:
        """Files of a name: exactly, in other case, with another ending, both."""
        wanted = PurePosixPath(name.replace("\\", "/"))
        stem = _split_name(wanted.name)[0]
        fit = self._present(self._by_stem.get(_fold(stem), ()))
        if wanted.parent.name:
            depth = {p: self._shared_parts(p, wanted) for p in fit}
            most = max(depth.values(), default=0)
            fit = [p for p in fit if depth[p] == most > 1]
        yield [p for p in fit if p.name == wanted.name]
        yield [p for p in fit if _fold(p.name) == _fold(wanted.name)]
        pictures = [p for p in fit if _split_name(p.name)[1]]
        yield [p for p in pictures if _split_name(p.name)[0] == stem]
        yield pictures

    def _shared_parts(self, path: PurePosixPath, wanted: PurePosixPath) -> int:
        """How many folders two paths have in common, counted from the file (which counts one)."""
        count = 1
        have = (self._name, *path.parent.parts)
        for ours, theirs in zip(reversed(have), reversed(wanted.parent.parts), strict=False):
            if _fold(ours) != _fold(theirs):
                break
            count += 1
        return count

    def _present(self, paths: Sequence[PurePosixPath]) -> list[PurePosixPath]:
        return [p for p in paths if self.root.joinpath(p).is_file()]

    def _one_of(self, fit: list[PurePosixPath], split: str) -> Path:
        """The one file that is meant."""
        fit = [p for p in fit if split in _roles(p)] or fit
        paths = [self.root / p for p in fit]
        if not all(_same(paths[0], other) for other in paths[1:]):
            raise NoPicture("ambiguous image")
        return paths[0]


def coco_number(name: str) -> int | None:
    """The number in a file name of COCO's (`COCO_val2014_000000000042.jpg`), None in any other."""
    stem = _split_name(PurePosixPath(name.replace("\\", "/")).name)[0]
    match = _COCO.fullmatch(_fold(stem))
    return int(match[1]) if match else None


def _walk(root: Path) -> Iterator[PurePosixPath]:
    """Paths of files below a folder, relative to it."""

    def refuse(error: OSError) -> None:
        raise UserError(f"{error.filename or root}: {error.strerror}") from None

    seen = set()
    try:
        for folder, folders, names in os.walk(root, onerror=refuse, followlinks=True):
            status = os.stat(folder)
            if (status.st_dev, status.st_ino) in seen:
                folders.clear()
                continue
            seen.add((status.st_dev, status.st_ino))
            folders[:] = sorted(f for f in folders if not f.startswith("."))
            at = PurePosixPath(Path(folder).relative_to(root).as_posix())
            yield from (at / name for name in names if not name.startswith("."))
    except OSError as e:
        refuse(e)
    except ValueError:  # a NUL in the path
        raise UserError(f"{str(root)!r}: not a path") from None


def _fold(name: str) -> str:
    """What two spellings of a file name have in common; macOS decomposes Vietnamese letters."""
    return unicodedata.normalize("NFC", name).lower()


def _split_name(name: str) -> tuple[str, str]:
    """A base name without and with only its ending, if that is one of pictures."""
    stem, dot, ending = name.rpartition(".")
    return (stem, ending) if stem and dot and ending.lower() in _EXTENSIONS else (name, "")


def _roles(path: PurePosixPath) -> set[str]:
    """The splits that the deepest telling folder of a path is named for."""
    for folder in reversed(path.parent.parts):
        words = [word.lower() for word in _WORD.findall(folder)]
        roles = {role for word in words for role in _SPLITS.get(word, ())}
        if roles:
            return {"private_test"} if roles == {"test"} and "private" in words else roles
    return set()


def _same(a: Path, b: Path) -> bool:
    try:
        return filecmp.cmp(a, b, shallow=False)
    except OSError:
        return False


def read_json(path: Path) -> object:
    """A JSON file, with or without a byte-order mark.

    NaN and infinities become floats and half surrogates stay in their strings, for readers to
    reject where they stand in a field that is used; so do integers of more than 20 digits.

    Raises:
      UserError: `file:line: reason`; also for an object with two different values of one key, as
        half of such a file would be lost.
    """
    return _loads(_text(path), str(path), first_line=1)


def read_jsonl(path: Path) -> Iterator[tuple[str, object]]:
    """The values of a file with one per line, each after its `file:line`; blank lines left out.

    Raises:
      UserError: as `read_json`, when its line is reached.
    """
    try:
        with open(path, "rb") as file:
            number = 0
            while line := file.readline(_MAX_LINE + 1):
                number += 1
                where = f"{path}:{number}"
                if len(line) > _MAX_LINE:
                    raise UserError(f"{where}: a line of more than {_MAX_LINE >> 20} MiB")
                if line.strip():
                    text = _decode(line.rstrip(b"\r\n"), where)
                    yield f"{path.name}:{number}", _loads(text, str(path), first_line=number)
    except OSError as e:
        raise UserError(f"{path}: {e.strerror}") from None


def read_csv(
    path: Path, columns: Sequence[str]
) -> Iterator[tuple[str, dict[str, str]] | Malformed]:
    """The rows of a CSV file with a header, each after its `file:line`.

    Args:
      path: UTF-8, with or without a byte-order mark; fields may hold quoted line breaks.
      columns: that must be there; there may be others.

    Yields:
      Rows by name of column; a row with too many or too few fields is malformed, as one cannot
      know which of them belong together.

    Raises:
      UserError: no such column, or quotes that do not close: `file:line: reason`.
    """
    reader = csv.reader(io.StringIO(_text(path), newline=""), strict=True)
    line = 1
    try:
        header = [name.strip() for name in next(reader, [])]
        for name in columns:
            if header.count(name) != 1:
                have = ", ".join(map(repr, header[:20]))
                what = "no column" if name not in header else "two columns"
                raise UserError(f"{path}:1: {what} {name!r} (the header has {have})")
        line = reader.line_num + 1
        for row in reader:
            where = f"{path.name}:{line}"
            if len(row) == len(header):
                yield where, dict(zip(header, row, strict=True))
            elif row:
                yield Malformed(where, f"{len(row)} fields instead of {len(header)}")
            line = reader.line_num + 1
    except csv.Error as e:
        raise UserError(f"{path}:{line}: broken CSV: {e}") from None


def _text(path: Path) -> str:
    try:
        with open(path, "rb") as file:
            data = file.read(_MAX_FILE + 1)
    except OSError as e:
        raise UserError(f"{path}: {e.strerror}") from None
    if len(data) > _MAX_FILE:
        raise UserError(f"{path}: larger than {_MAX_FILE >> 20} MiB")
    return _decode(data, str(path))


def _decode(data: bytes, where: str) -> str:
    try:
        return data.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as e:
        raise UserError(f"{where}: not UTF-8: byte {data[e.start]:#04x} at {e.start}") from None


def _loads(text: str, path: str, first_line: int) -> object:
    """JSON of a text that begins at a line of a file."""
    closed = 0

    def pairs(items: list[tuple[str, object]]) -> dict[str, object]:
        nonlocal closed
        closed += 1
        made = dict(items)
        if len(made) < len(items):
            for key, value in items:
                if made[key] != value:
                    line = first_line + _line_of_object(text, closed)
                    raise UserError(f"{path}:{line}: two values of {key!r:.80} in one object")
        return made

    def integer(digits: str) -> int | float:
        return int(digits) if len(digits) <= _MAX_DIGITS else float(digits)

    try:
        return json.loads(text, object_pairs_hook=pairs, parse_int=integer)
    except json.JSONDecodeError as e:
        line = first_line + e.lineno - 1
        raise UserError(f"{path}:{line}: broken JSON: {e.msg} at column {e.colno}") from None
    except RecursionError:
        raise UserError(f"{path}:{first_line}: broken JSON: nested too deeply") from None


def _line_of_object(text: str, nth: int) -> int:
    """How many lines stand before the end of the nth object that closes (from 1)."""
    ends = (m for m in re.finditer(r'"(?:[^"\\]|\\.)*"|\}', text, re.DOTALL) if m[0] == "}")
    for _ in range(nth - 1):
        next(ends)
    return text.count("\n", 0, next(ends).start())
