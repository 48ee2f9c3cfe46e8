"""Damaged annotation files: an error is one line, and what is read stood together in the file.

The checks parse the damaged file themselves, so that they share nothing with the readers but the
standard library.
"""

import contextlib
import csv
import io
import json
import random
import re
import signal

import pytest

from tests.datasets.damage import RECORDS, SCHEMAS, damaged, written
from vimoe_jax.base.errors import UserError
from vimoe_jax.datasets import get
from vimoe_jax.datasets.annotations import Asked, Malformed, Picture
from vimoe_jax.datasets.preparing.files import Files, NoPicture

DAMAGED = 150  # files a schema
EXTENSIONS = ("jpg", "jpeg", "png", "webp", "bmp", "gif")


# What stands in a file.


def _stands(schema, data, asked, variant):
    """Whether picture, question and answers stand together where the annotation says."""
    name = SCHEMAS[schema][1]
    text = data.decode().removeprefix("\ufeff")
    if name.endswith(".csv"):
        return _stands_in_row(SCHEMAS[schema][2][1], text, asked)
    if name.endswith(".jsonl"):
        row = _parsed(text.split("\n")[int(asked.where.rpartition(":")[2]) - 1])
    else:
        document = _parsed(text)
        key = re.fullmatch(r".*?: (?:annotations)?\[(.*)\]", asked.where)[1]
        rows = document["annotations"] if isinstance(document, dict) else document
        row = rows[int(key)] if isinstance(rows, list) else rows[asked.qa.id]
        if isinstance(document, dict) and document.get("images") is not None:
            return _same_text(row, asked, variant) and _names_picture(
                row, document["images"], asked.picture
            )
    return _same_text(row, asked, variant) and _is_picture(row, asked.picture)


def _parsed(text):
    return json.loads(text, parse_int=lambda d: int(d) if len(d) < 100 else float(d))


def _stands_in_row(picture, text, asked):
    """Rows of a table are told by their question; all that share it are looked at."""
    header, *rows = csv.reader(io.StringIO(text, newline=""))
    rows = [
        dict(zip(map(str.strip, header), r, strict=True)) for r in rows if len(r) == len(header)
    ]
    return any(
        row["question"] == asked.qa.question
        and [row["answer"]] == list(asked.qa.answers)
        and row[picture].strip().lstrip("0") == asked.picture.id.lstrip("0")
        for row in rows
    )


def _same_text(row, asked, variant):
    """Whether question, answers and explanations are an annotation's own."""
    qa = asked.qa
    if qa.task == "caption":
        key = "segment_caption" if variant == "segmented" else "caption"
        found = row.get(key, row.get("translation_tokenized", row.get("vi")))
        found = found["caption"] if isinstance(found, dict) else found
    else:
        several = None if qa.explanations else row.get("answers")
        found = row.get("answer") if several is None else several
    explained = row.get("explanation", [])
    return (
        (found if isinstance(found, list) else [found]) == list(qa.answers)
        and (qa.task == "caption" or row["question"] == qa.question)
        and (explained if isinstance(explained, list) else [explained]) == list(qa.explanations)
    )


def _is_picture(row, picture):
    """Whether an annotation names a picture by itself."""
    called = row.get("image_id", row.get("image/key"))
    called = called if called is not None else row.get("file_name", row.get("filename"))
    number = str(called).partition("_")[0]
    if picture.coco is not None:
        name = str(row.get("image_name") or "")
        digits = re.sub("^.*_", "", name).removesuffix(".jpg")
        ours = not re.fullmatch(r"(COCO_\w+_)?\d{12}\.jpg", name) or int(digits) == picture.coco
        return number.isdigit() and int(number) == picture.coco and ours
    return str(called) == picture.id and picture.names[0] in (picture.id, f"{picture.id}.jpg")


def _names_picture(row, images, picture):
    """Whether the one listed picture that an annotation means has that file name."""
    called = row.get("image_id")
    if called is None:
        called = row.get("file_name") if row.get("file_name") is not None else row["filename"]
    if isinstance(images, dict):
        entries = [
            {**(v if isinstance(v, dict) else {"filename": v}), "id": k} for k, v in images.items()
        ]
    else:
        entries = [entry for entry in images if isinstance(entry, dict)]
    names = set()
    for entry in entries:
        name = (
            entry.get("file_name") if entry.get("file_name") is not None else entry.get("filename")
        )
        if entry.get("id") is not None:
            same = str(entry["id"]) == str(called)
            same |= picture.coco is not None and str(entry["id"]).lstrip("0") == str(picture.coco)
        else:
            stem = str(name).rpartition(".")[0] or str(name)
            same = str(called) in (str(name), stem, stem.lstrip("0"))
        if same and isinstance(name, str):
            names.add(name)
    if picture.coco is not None:
        return str(called) == picture.id and (not picture.names or set(picture.names) == names)
    return names == set(picture.names)


def _is_of(path, picture):
    """Whether a file's name is one that an annotation could mean."""
    stem, _, ending = path.name.rpartition(".")
    if picture.coco is not None:
        number = re.fullmatch(r"(?:COCO_(?:train|val|test)201[457]_)?(\d{12})|(\d+)", stem)
        if number and int(number[1] or number[2]) == picture.coco:
            return True
    stems = {
        re.sub(rf"\.({'|'.join(EXTENSIONS)})$", "", re.split(r"[/\\]", name)[-1], flags=re.I)
        for name in picture.names
    }
    return ending.lower() in EXTENSIONS and stem.lower() in {s.lower() for s in stems}


@contextlib.contextmanager
def _within(seconds):
    def stop(*_):
        raise TimeoutError

    old = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, old)


PICTURES = (
    "train2014/COCO_train2014_000000000001.jpg", "val2014/COCO_val2014_000000000012.jpg",
    "images/000000000112.jpg", "images/112.png", "images/12.jpg", "train/120.jpg", "test/120.jpg",
    "test/1.jpg", "images/00000000001.jpg", "images/000000000120.PNG", "images/x.png",
)  # fmt: skip


def fuzz(root, schema, count, seed):
    """Reads damaged files; returns how many annotations they held."""
    dataset, name, content = SCHEMAS[schema]
    dataset = get(dataset)
    for path in PICTURES:
        (root / path).parent.mkdir(exist_ok=True)
        (root / path).write_text(path)
    rng = random.Random(f"{schema} {seed}")
    seen = 0
    for _ in range(count):
        data = damaged(name, content, rng)
        (root / name).write_bytes(data)
        try:
            files = Files(root)
            variant = rng.choice(dataset.variants)
            read = dataset.read(files, variant)
            rows = [(split, row) for split, some in read.items() for row in some]
        except UserError as e:
            assert len(str(e).splitlines()) == 1 and name in str(e)
            seen += RECORDS
            continue
        seen += len(rows)
        for split, row in rows:
            assert len(row.where.splitlines()) == 1 and row.where.startswith(name)
            if isinstance(row, Malformed):
                assert len(row.reason.splitlines()) == 1 and len(row.reason) < 300
            else:
                _check(files, split, row, schema, data, variant)
    return seen


def _check(files, split, row, schema, data, variant):
    assert isinstance(row, Asked)
    qa, picture = row.qa, row.picture
    said = (qa.id, qa.question, *qa.answers, *qa.explanations, qa.type, picture.id, *picture.names)
    assert "".join(said).encode() is not None and qa.answers
    assert _stands(schema, data, row, variant), (row, data.decode())
    with contextlib.suppress(NoPicture):
        assert _is_of(files.picture(picture, split), picture)


def test_undamaged(tmp_path):
    for schema, (dataset, name, content) in SCHEMAS.items():
        root = tmp_path / schema
        root.mkdir()
        data = written(name, content)
        (root / name).write_bytes(data)
        files, found = Files(root), get(dataset)
        variant = "all" if dataset == "evjvqa" else found.variants[0]
        [(split, rows)] = found.read(files, variant).items()
        rows = list(rows)
        assert len(rows) == (10 if dataset == "coco35l" else RECORDS)
        for row in rows:
            _check(files, split, row, schema, data, variant)


@pytest.mark.parametrize("schema", SCHEMAS)
def test_damaged_files(tmp_path, schema):
    """All schemas together: more than 20,000 annotations."""
    with _within(60):
        assert fuzz(tmp_path, schema, DAMAGED, seed=0) * len(SCHEMAS) > 20_000


def test_pictures_of_any_name(tmp_path):
    """The finder on names that are near one another."""
    rng = random.Random(0)
    parts = ("1", "12", "012", "000000000012", "COCO_val2014_000000000012", "a", "A", "12.jpg")
    ends = (".jpg", ".JPG", ".png", ".jpeg", "", ".txt")
    folders = ("", "train/", "test/", "val2014/", "images/", "a/train/")
    with _within(60):
        for i in range(40):
            root = tmp_path / str(i)
            for _ in range(12):
                path = root / (rng.choice(folders) + rng.choice(parts) + rng.choice(ends))
                path.parent.mkdir(parents=True, exist_ok=True)
                if not path.exists():
                    path.write_text(rng.choice("xy"))
            files = Files(root)
            for _ in range(50):
                names = tuple(
                    rng.choice(folders) + rng.choice(parts) + rng.choice(ends[:5]) for _ in "ab"
                )
                number = rng.choice((None, 1, 12, 112))
                picture = Picture("x", names[: rng.randrange(3)], number)
                split = rng.choice(("train", "validation", "test"))
                with contextlib.suppress(NoPicture):
                    path = files.picture(picture, split)
                    called = {name.rpartition("/")[2].lower() for name in picture.names}
                    assert path.name.lower() in called or _is_of(path, picture)
