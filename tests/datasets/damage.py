"""Small annotation files in every published schema, and what can happen to a file."""

import copy
import csv
import io
import json

RECORDS = 12  # annotations a file
QUESTIONS = ("có mấy người?", "biển ghi gì?", "何色ですか?", "what is it?", "sách do ai dịch", "")

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


def written(name, content, indent=None, end="\n"):
    """A file's bytes; half surrogates, which have no UTF-8, stand as escapes."""
    if name.endswith(".csv"):
        out = io.StringIO(newline="")
        csv.writer(out, lineterminator=end).writerows(content[0])
        return out.getvalue().encode()
    if name.endswith(".jsonl"):
        return "\n".join(map(json.dumps, content)).encode()
    return json.dumps(content, indent=indent).encode()


def damaged(name, content, rng):
    """A damaged file; what it says is left to the checks to parse."""
    content = copy.deepcopy(content)
    if rng.random() < 0.7:
        if name.endswith(".csv"):
            _damage_cells(content[0], rng)
        else:
            _damage_tree(content, rng)
    data = written(name, content, rng.choice((None, 1)), rng.choice(("\n", "\r\n")))
    return data if rng.random() < 0.6 else _damage_bytes(data, rng)
