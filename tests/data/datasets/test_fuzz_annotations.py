"""Damaged annotation files: an error is one line, and what is read stood together in the file.

The checks parse the damaged file themselves, so that they share nothing with the readers but the
standard library.
"""

import contextlib
import copy
import csv
import io
import json
import random
import re
import signal

import pytest

from vimoe_jax.data.datasets import get
from vimoe_jax.data.datasets.files import Files, NoPicture
from vimoe_jax.data.datasets.published import Asked, Malformed, Picture
from vimoe_jax.errors import UserError

RECORDS = 12  # annotations a file
DAMAGED = 150  # files a schema
QUESTIONS = ("có mấy người?", "biển ghi gì?", "何色ですか?", "what is it?", "sách do ai dịch", "")
EXTENSIONS = ("jpg", "jpeg", "png", "webp", "bmp", "gif")


# Undamaged files.


def _rows(**columns):
    """Annotations that differ in every field, of four pictures."""
    for i in range(RECORDS):
        yield i, (1, 12, 112, 120)[i % 4], {k: f"{v} {i}" for k, v in columns.items()}


def _listed(name, **columns):
    images = [{"id": i, name: f"{i:012}.jpg"} for i in (1, 12, 112, 120)]
    rows = [{"id": i, "image_id": at, **row} for i, at, row in _rows(**columns)]
    return {"images": images, "annotations": rows}


def _asked(answers, **more):
    document = _listed("filename", question="", answer="a", **more)
    for i, row in enumerate(document["annotations"]):
        row["question"] = f"{QUESTIONS[i % 6]} số {i}"
        if answers == "answers":
            row["answers"] = [row.pop("answer"), f"b {i}"]
    return document


def _by_id():
    document = _asked("answer")
    return {
        "images": {str(i["id"]): i["filename"] for i in document["images"]},
        "annotations": {str(a.pop("id")): a for a in document["annotations"]},
    }


def _without_ids():
    document = _listed("filename", caption="c", segment_caption="s")
    for entry in document["images"]:
        del entry["id"]
    for row in document["annotations"][::2]:
        row["filename"] = f"{row.pop('image_id'):012}.jpg"
    return document


def _explained():
    return [
        {
            "question": f"q {i}", "answer": f"a {i}", "explanation": [f"e {i}", f"f {i}"],
            "image_id": str(at), "image_name": f"COCO_val2014_{at:012}.jpg",
            "question_id": f"{at}00{i}", "question_type": "is", "answer_type": "other",
        }
        for i, at, _ in _rows()
    ]  # fmt: skip


def _lines():
    return [{"image/key": f"{at:012}", "vi": {"caption": [f"c {i}", "d"]}} for i, at, _ in _rows()]


def _translated():
    return [
        {
            "image_id": f"{at}_{1 + i % 5}", "src_lang": "en", "trg_lang": ("vi", "de")[i % 5 == 4],
            "caption_tokenized": f"c {i}", "translation_tokenized": f"t {i}",
        }
        for i, at, _ in _rows()
    ]  # fmt: skip


def _table(picture, header):
    rows = [[str(i), f"q, {i}", f"a {i}", str(at), str(i % 4)] for i, at, _ in _rows()]
    return [header, *rows], picture


_VIVQA = ["", "question", "answer", "img_id", "type"]
_VICLEVR = ["", "question", "answer", "image_id", "x"]
SCHEMAS = {
    "vivqa": ("vivqa", "train.csv", _table("img_id", _VIVQA)),
    "viclevr": ("viclevr", "dev.csv", _table("image_id", _VICLEVR)),
    "uit_viic": ("uit_viic", "uitviic_captions_val2017.json", _listed("file_name", caption="c")),
    "ktvic": ("ktvic", "train_data.json", _listed("filename", caption="c", segment_caption="s")),
    "ktvic without ids": ("ktvic", "test_data.json", _without_ids()),
    "openvivqa by id": ("openvivqa", "vlsp2023_dev_data.json", _by_id()),
    "openvivqa": ("openvivqa", "openvivqa_train.json", _asked("answers", **{"QA-type": "t"})),
    "evjvqa": ("evjvqa", "evjvqa_public_test.json", _asked("answer")),
    "viocrvqa": ("viocrvqa", "dev.json", {"annotations": _asked("answers")["annotations"]}),
    "vitextvqa": ("vitextvqa", "ViTextVQA_test_gt.json", _asked("answers")),
    "vivqa_x": ("vivqa_x", "ViVQA-X_val.json", _explained()),
    "xm3600": ("xm3600", "captions.jsonl", _lines()),
    "coco35l": ("coco35l", "train_35_caption.jsonl", _translated()),
}  # fmt: skip


# Damage.

ODD = (
    None, True, 0, 1, 12, 112, -1, 1.0, 12.5, float("nan"), float("inf"), 10**30, 10**18, "", " ",
    "1", "12", "012", "12.jpg", "x.png", "000000000112.jpg", "train/12.jpg", "../12.jpg", "a\nb",
    "\0", "a\ud800", "\u2028", "id", [], {}, [[]], ["a"], [None], {"id": 1}, {"": ""}, "đ" * 300,
)  # fmt: skip


def _nodes(value, found=None):
    """Every (container, key) of a document."""
    found = [] if found is None else found
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, child in list(items):
        found.append((value, key))
        if isinstance(child, dict | list):
            _nodes(child, found)
    return found


def _damage_tree(document, rng):
    """Keys and values deleted, renamed, retyped, swapped, repeated, nested; in place."""
    for _ in range(rng.choice((1, 1, 2, 5))):
        nodes = _nodes(document)
        if not nodes:
            return
        at, key = rng.choice(nodes)
        kind = rng.randrange(6)
        if kind == 0:
            at.pop(key)
        elif kind == 1 and isinstance(at, dict):
            at[rng.choice(("", "id", "image_id", "answers", "filename", "\ud800", "x"))] = at.pop(
                key
            )
        elif kind == 2:
            at[key] = rng.choice(ODD)
        elif kind == 3:
            alike = [n for n in nodes if n[1] == key] if rng.random() < 0.8 else nodes
            other, place = rng.choice(alike)
            one, two = copy.deepcopy(at[key]), copy.deepcopy(other[place])
            at[key], other[place] = two, one
        elif kind == 4 and isinstance(at, list):
            at.insert(rng.randrange(len(at) + 1), copy.deepcopy(at[key]))
        elif kind == 5:
            at[key] = [at[key]] if rng.random() < 0.5 else {"id": at[key]}


def _damage_cells(table, rng):
    for _ in range(rng.choice((1, 2, 5))):
        row, other = rng.choice(table), rng.choice(table)
        kind, at = rng.randrange(6), rng.randrange(5)
        if kind == 0 and row:
            row.pop(at % len(row))
        elif kind == 1:
            row.insert(at, rng.choice(("", "x", '"', "a,b", "\r\n", "\0")))
        elif kind == 2 and row:
            row[at % len(row)] = rng.choice(("", "12", "1.0", "-1", "9" * 40, "a\nb", " 2 ", '"x'))
        elif kind == 3 and len(row) > at and len(other) > at:
            row[at], other[at] = other[at], row[at]
        elif kind == 4:
            table.insert(rng.randrange(len(table) + 1), list(row))
        else:
            table.remove(row)
        if not table:
            return


def _damage_bytes(data, rng):
    """Bytes flipped, cut out, put in, repeated; the end cut off."""
    made = bytearray(data)
    for _ in range(rng.choice((1, 1, 3))):
        at, size = rng.randrange(len(made) + 1), rng.choice((1, 1, 2, 7, 40))
        kind = rng.randrange(6)
        if kind == 0 and at < len(made):
            made[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            del made[at : at + size]
        elif kind == 2:
            put = (
                b"\0",
                b"\xff",
                b'"',
                b"\\ud800",
                b"}",
                b",",
                b"\n",
                b"9" * 5000,
                b"\xef\xbb\xbf",
            )
            made[at:at] = rng.choice(put)
        elif kind == 3:
            made[at:at] = made[at : at + size]
        elif kind == 4:
            del made[at:]
        elif rng.random() < 0.1:
            made[at:at] = rng.choice((b"[", b'{"a":')) * 20_000
    return bytes(made)


def _written(name, content, indent=None, end="\n"):
    """A file's bytes; half surrogates, which have no UTF-8, stand as escapes."""
    if name.endswith(".csv"):
        out = io.StringIO(newline="")
        csv.writer(out, lineterminator=end).writerows(content[0])
        return out.getvalue().encode()
    if name.endswith(".jsonl"):
        return "\n".join(map(json.dumps, content)).encode()
    return json.dumps(content, indent=indent).encode()


def _damaged(name, content, rng):
    """A damaged file; what it says is left to the checks to parse."""
    content = copy.deepcopy(content)
    if rng.random() < 0.7:
        if name.endswith(".csv"):
            _damage_cells(content[0], rng)
        else:
            _damage_tree(content, rng)
    data = _written(name, content, rng.choice((None, 1)), rng.choice(("\n", "\r\n")))
    return data if rng.random() < 0.6 else _damage_bytes(data, rng)


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
        data = _damaged(name, content, rng)
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
        data = _written(name, content)
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
