import json
import pickle

import pytest
from PIL import Image

from vimoe_jax.base.errors import UserError
from vimoe_jax.datasets.jsonl import JsonlSource
from vimoe_jax.datasets.records import TASKS, BadRecord

GOOD = {"image": "a.png", "task": "vqa", "question": "con mèo màu gì", "answers": ["đen"]}


@pytest.fixture
def write(tmp_path):
    """Writes lines (dicts, or raw bytes) beside two pictures."""
    for name in ("a.png", "b.png"):
        Image.new("RGB", (4, 4)).save(tmp_path / name)

    def write(*lines):
        path = tmp_path / "data.jsonl"
        path.write_bytes(
            b"\n".join(
                x if isinstance(x, bytes) else json.dumps(x, ensure_ascii=False).encode()
                for x in lines
            )
        )
        return path

    return write


def test_pictures_and_their_questions(write, tmp_path):
    path = write(
        GOOD | {"id": "q1", "type": "color"},
        {"image": "b.png", "task": "caption", "caption": "Một con chó nằm trên cỏ."},
        GOOD | {"question": "có mấy con mèo?", "answers": ["hai", "2"]},
        {
            "image": "b.png",
            "task": "caption",
            "answers": ["Chó nằm trên bãi cỏ."],
            "question": None,
        },
        {"image": "b.png", "task": "ocr_vqa", "question": "biển ghi gì", "answers": ["Phở Bò"]},
    )
    source = JsonlSource(path)
    assert len(source) == 2
    first, second = source[0], source[1]
    assert first.pictures[0] == (tmp_path / "a.png").read_bytes()
    assert [q.id for q in first.qa] == ["q1", "line3"]
    assert first.qa[0].type == "color" and first.qa[1].type == ""
    assert first.qa[1].answers == ("hai", "2")
    assert [q.task for q in second.qa] == ["caption", "ocr_vqa"]
    assert second.qa[0].answers == ("Một con chó nằm trên cỏ.", "Chó nằm trên bãi cỏ.")
    assert second.qa[0].question == ""
    assert source.name(0).endswith("a.png") and source.skipped == []
    assert list(source.questions()) == [*first.qa, *second.qa]
    assert pickle.loads(pickle.dumps(source))[1] == second


def test_splits(write):
    path = write(
        GOOD | {"split": "train"},
        GOOD | {"split": "test", "question": "ở đâu"},
        GOOD | {"split": "train", "image": "b.png"},
        GOOD,
    )
    assert len(JsonlSource(path, "train")) == 2
    assert [q.question for q in JsonlSource(path, "test").questions()] == ["ở đâu"]
    assert len(JsonlSource(path)[0].qa) == 3
    assert JsonlSource(path).splits == {"train": 2, "test": 1, "": 1}
    with pytest.raises(UserError, match=r"no records of split 'val' .*'test', 'train'"):
        JsonlSource(path, "val")


def test_unknown_keys_are_counted_once(write, capsys):
    JsonlSource(write(GOOD | {"coco_id": 1}, GOOD | {"coco_id": 2, "nguồn": "x"}))
    warnings = capsys.readouterr().err.splitlines()
    assert len(warnings) == 1 and "coco_id (2×), nguồn (1×)" in warnings[0]


def test_repeated_ids_become_unique(write):
    source = JsonlSource(write(*[GOOD | {"id": 7, "question": f"câu {i}"} for i in range(3)]))
    assert [q.id for q in source.questions()] == ["7", "7/2", "7/3"]


def test_escaped_text(write):
    path = write(json.dumps(GOOD | {"answers": ["đen 😺"]}).encode("ascii"))
    assert next(JsonlSource(path).questions()).answers == ("đen 😺",)


def test_blank_lines_and_a_byte_order_mark(write):
    path = write(b"\xef\xbb\xbf" + json.dumps(GOOD).encode(), b"", b"   ", GOOD)
    assert [q.id for q in JsonlSource(path).questions()] == ["line1", "line4"]


def without(key):
    return {k: v for k, v in GOOD.items() if k != key}


BAD = [
    (b'{"image": "a.png", "task": ', "broken JSON: "),
    (b'{"image": ' + b"1" * 5000 + b"}", "broken JSON: "),
    (b"[" * 100_000, "broken JSON: nested too deeply"),
    (json.dumps(GOOD, ensure_ascii=False).encode("cp1258", "replace"), "not UTF-8"),
    (json.dumps(GOOD).encode("utf-16"), "not UTF-8"),
    ([GOOD], "not a JSON object"),
    (without("image"), "image: missing or empty"),
    (without("task"), "task: missing or empty"),
    (without("answers"), "answers: missing or empty"),
    (GOOD | {"answers": None}, "answers: missing or empty"),
    (GOOD | {"image": 12}, "image: must be a string"),
    (GOOD | {"question": ["x"]}, "question: must be a string"),
    (GOOD | {"id": ["x"]}, "id: must be"),
    (GOOD | {"task": "vqaa"}, f"task: must be one of {', '.join(TASKS)}, not 'vqaa'"),
    (GOOD | {"answers": []}, "answers: missing or empty"),
    (GOOD | {"answers": "đen"}, "answers: must be a list of strings"),
    (GOOD | {"answers": ["đen", 3]}, "answers: must be a list of strings"),
    (GOOD | {"answers": ["đen", " \u200b"]}, "answers: an answer is empty"),
    (without("question"), "question: missing or empty"),
    (GOOD | {"question": " ? "}, "question: missing or empty"),
    ({"image": "a.png", "task": "caption", "caption": 5}, "answers: must be a list of strings"),
    ({"image": "a.png", "task": "caption"}, "answers: missing or empty"),
    (GOOD | {"image": "c.png"}, "image: no such file: c.png"),
    (GOOD | {"image": "."}, "image: no such file: ."),
    (GOOD | {"image": "a" * 5000}, "image: no such file: aaa"),
    (b'{"image": "\\ud800", "task": "caption", "caption": "x"}', "broken JSON: half"),
    (b'{"image": "a.png", "task": "caption", "caption": "\\udcff"}', "broken JSON: half"),
    (GOOD | {"image": "a\0.png"}, "image: not a path"),
]


@pytest.mark.parametrize("line, reason", BAD, ids=[f"{i}-{r[:20]}" for i, (_, r) in enumerate(BAD)])
def test_a_bad_line_is_named_or_skipped(write, line, reason, capsys):
    path = write(GOOD, line, GOOD | {"image": "b.png"})
    with pytest.raises(UserError) as e:
        JsonlSource(path)
    assert str(e.value).startswith(f"{path}:2: {reason}")
    source = JsonlSource(path, max_bad=1)
    assert len(source) == 2
    assert len(source.skipped) == 1 and source.skipped[0].startswith(f"{path}:2: {reason}")
    assert "warning: skipped" in capsys.readouterr().err


def test_one_bad_line_more_than_allowed(write):
    path = write(GOOD, b"{", GOOD, b"}", b"x")
    with pytest.raises(UserError, match=r":5: broken JSON.*the 2 allowed"):
        JsonlSource(path, max_bad=2)
    assert len(JsonlSource(path, max_bad=3).skipped) == 3


def test_many_bad_lines_make_few_warnings(write, capsys):
    source = JsonlSource(write(GOOD, *[b"{"] * 40), max_bad=100)
    assert len(source.skipped) == 40
    assert "skipped 30 more" in capsys.readouterr().err


def test_no_file_and_nothing_in_it(write, tmp_path):
    with pytest.raises(UserError, match=r"none\.jsonl"):
        JsonlSource(tmp_path / "none.jsonl")
    with pytest.raises(UserError):
        JsonlSource(tmp_path)
    with pytest.raises(UserError, match=r"data\.jsonl: no records"):
        JsonlSource(write(b"", b""))


def test_a_picture_that_vanishes_later(write, tmp_path):
    source = JsonlSource(write(GOOD))
    (tmp_path / "a.png").unlink()
    with pytest.raises(BadRecord, match=r"a\.png: No such file"):
        source[0]


def test_real_pairs(real_data):
    path = real_data / "images" / "pairs.jsonl"
    source = JsonlSource(path)
    lines = [json.loads(x) for x in path.read_text("utf-8").splitlines()]
    assert len(source) == len({x["image"] for x in lines})
    asked = [q for q in source.questions() if q.task != "caption"]
    assert len(asked) == sum(x["task"] != "caption" for x in lines)
    assert all(len(source[i].pictures[0]) > 1000 for i in range(len(source)))
