"""Readers on what authors published, where it lies."""

import itertools
import json
from collections import Counter

import pytest

from vimoe_jax.datasets import get
from vimoe_jax.datasets.annotations import Malformed
from vimoe_jax.datasets.preparing.files import Files
from vimoe_jax.datasets.readers.viocrvqa import field

pytestmark = pytest.mark.real_data


def published(real_data, folder, name, variant=None):
    if not (real_data / folder).is_dir():
        pytest.skip(f"no {folder} in {real_data}")
    found = get(name)
    files = Files(real_data / folder)
    splits = found.read(files, variant or found.variants[0])
    splits = {split: list(rows) for split, rows in splits.items()}
    assert not any(isinstance(row, Malformed) for rows in splits.values() for row in rows)
    assert not files.ignored
    for rows in splits.values():
        assert len({row.qa.id for row in rows}) == len(rows)
    return splits


def test_vivqa_as_published(real_data):
    rows = published(real_data, "vivqa", "vivqa")["train"]
    assert len(rows) == 11_999
    counts = {"object": 4987, "number": 1776, "color": 2498, "location": 2738}
    assert Counter(row.qa.type for row in rows) == counts


def test_uit_viic_as_published(real_data):
    splits = published(real_data, "uit_viic", "uit_viic")
    counts = {name: (len({r.picture.id for r in s}), len(s)) for name, s in splits.items()}
    assert counts == {"train": (2695, 13_481), "validation": (924, 4620)}


def test_vivqa_x_as_published(real_data):
    rows = published(real_data, "vivqa_x", "vivqa_x")["validation"]
    assert len(rows) == 1459 and all(len(row.qa.explanations) == 3 for row in rows)


def test_evjvqa_as_published(real_data):
    rows = published(real_data, "evjvqa", "evjvqa", "all")["test"]
    assert len(rows) == 5015 and len({row.picture.id for row in rows}) == 558
    assert Counter(row.qa.type for row in rows) == {"en": 1686, "vi": 1678, "ja": 1651}
    # Each picture's questions stand in the order English, Vietnamese, Japanese: a question whose
    # language is mistaken breaks it, unless it stands at a border.
    for _, some in itertools.groupby(rows, key=lambda row: row.picture.id):
        order = ["en vi ja".split().index(row.qa.type) for row in some]
        assert order == sorted(order)
    assert len(published(real_data, "evjvqa", "evjvqa")["test"]) == 1678


def test_viocrvqa_wordings_as_published(real_data):
    path = real_data / "viocrvqa" / "field_labels.json"
    if not path.is_file():
        pytest.skip(f"no {path}")
    labels = json.loads(path.read_text())
    assert len(labels) == 240
    assert {q: field(q) for q in labels} == labels


def test_questions_about_photographs_as_published(real_data):
    """Readers and finder give the pairs that were put together by other means."""
    pairs = real_data / "images" / "pairs.jsonl"
    if not pairs.is_file():
        pytest.skip(f"no {pairs}")
    files = Files(real_data)
    names = {"ViVQA": "vivqa", "UIT-ViIC": "uit_viic", "ViVQA-X": "vivqa_x"}
    splits = {"val": "validation", "validation": "validation"}
    read = {n: {} for n in names}
    for title, name in names.items():
        for split, rows in get(name).read(files, "default").items():
            for row in rows:
                key = (split, row.picture.coco, row.qa.question)
                read[title].setdefault(key, []).append(row)
    for line in pairs.read_text().splitlines():
        pair = json.loads(line)
        split = splits.get(pair["split"], pair["split"])
        some = read[pair["dataset"]][split, pair["coco_id"], pair.get("question", "")]
        assert set(pair.get("answers", [pair.get("caption")])) <= {
            answer for row in some for answer in row.qa.answers
        }
        assert files.picture(some[0].picture, split).name == f"{pair['coco_id']:012}.jpg"
