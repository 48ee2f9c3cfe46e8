"""Scores of short answers against values worked out by hand."""

import csv
import json
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vimoe_jax.base.errors import UserError
from vimoe_jax.datasets.records import QA
from vimoe_jax.scores import predictions as predictions_lib
from vimoe_jax.scores import vqa
from vimoe_jax.scores.predictions import Prediction
from vimoe_jax.text.normalize import PROFILES


def answered(prediction, *answers, task="vqa", type="color", question="màu của bông hoa là gì"):
    return Prediction("p", 0, "p/0", task, type, question, answers, prediction)


def test_accuracy_ignores_form_case_space_and_one_full_stop():
    nfd = unicodedata.normalize("NFD", "Màu Đỏ")
    assert nfd != "Màu Đỏ"
    for same in ("màu đỏ", " Màu Đỏ. ", nfd, "màu  đỏ ."):
        assert vqa.exact(same, "màu đỏ") == 1, same
    for other in ("màu do", "mau đỏ", "màu đỏ..", "đỏ", ""):
        assert vqa.exact(other, "màu đỏ") == 0, other


def test_the_best_reference_counts():
    m = vqa.score([answered("có", "đúng", "có")])
    assert m["vqa/accuracy"] == m["vqa/f1_squad"] == m["vqa/anls"] == 1
    assert m["vqa/cer"] == 0
    assert m["vqa/f1_uit"] == 0.5  # UIT's code averages instead


def test_the_two_f1s_differ_on_repeated_syllables():
    # Multisets: {xanh: 2} in common of 2 and 3 syllables. Sets: {xanh} in common.
    assert vqa.f1_squad("xanh xanh", "xanh xanh lá") == pytest.approx(2 * 2 / 5)
    assert vqa.f1_uit("xanh xanh", ["xanh xanh lá"]) == pytest.approx(2 * 1 / 5)
    assert vqa.f1_squad("hai con mèo", "con mèo đen") == pytest.approx(2 / 3)
    assert vqa.f1_squad("con chó", "bãi cỏ") == vqa.f1_uit("con chó", ["bãi cỏ"]) == 0
    assert vqa.f1_squad("", "bãi cỏ") == vqa.f1_uit("", ["bãi cỏ"]) == 0


def test_anls_and_cer_by_hand():
    assert vqa.anls("nhà sách", "nhà sáck") == pytest.approx(1 - 1 / 8)
    assert vqa.anls("phở bò", "phở gà") == pytest.approx(1 - 2 / 6)
    assert vqa.anls("abcd", "abxy") == 0.5  # the threshold itself counts
    assert vqa.anls("abcd", "axyz") == 0
    assert vqa.cer("phở bò", "phở gà") == pytest.approx(2 / 6)
    assert vqa.cer("một câu trả lời rất dài", "hai") == 1
    assert vqa.cer("", "hai") == 1


@given(st.text("aăâeêiouơưđ ", max_size=8), st.text("aăâeêiouơưđ ", max_size=8))
def test_edits_are_a_metric(a, b):
    d = vqa._edits(a, b)
    assert d == vqa._edits(b, a)
    assert abs(len(a) - len(b)) <= d <= max(len(a), len(b))
    assert (d == 0) == (a == b)


def test_by_type_and_task():
    m = vqa.score(
        [
            answered("màu đỏ", "màu đỏ"),
            answered("màu đen", "màu đỏ"),
            answered("hai", "hai", type="number"),
            answered("Sông Trôi", "Rừng Đước", type="title", task="ocr_vqa"),
            answered("một con mèo", "một con mèo đen", type="", task="caption"),
        ]
    )
    assert m["vqa/count"] == 4
    assert m["vqa/accuracy"] == 0.5
    assert m["vqa/accuracy/color"] == 0.5
    assert m["vqa/accuracy/number"] == 1
    assert m["vqa/accuracy/title"] == m["vqa/accuracy_task/ocr_vqa"] == 0
    assert m["vqa/accuracy_task/vqa"] == pytest.approx(2 / 3)
    assert not any(n.startswith("vqa/accuracy_task") for n in vqa.score([answered("hai", "ba")]))


def test_nothing_to_score():
    assert vqa.score([]) == {}
    assert vqa.score([answered("x", "y", task="caption"), answered("màu đỏ")]) == {}
    assert vqa.floors([], [answered("hai", "hai")]) == {}


def test_floors():
    def qa(question, answer, type):
        return QA("q", "vqa", question, (answer,), type)

    train = [
        qa("có mấy con mèo", "hai", "number"),
        qa("có mấy quả táo", "hai", "number"),
        qa("có mấy chiếc thuyền", "ba", "number"),
        qa("màu của lá cờ là gì", "màu đỏ", "color"),
        QA("c", "caption", "", ("màu đỏ", "màu đỏ", "màu đỏ")),
    ]
    asked = [
        answered("", "hai", type="number", question="có mấy con chim"),
        answered("", "ba", type="number", question="Có mấy chiếc thuyền"),
        answered("", "màu đỏ", type="color", question="màu của chiếc ô là gì"),
        answered("", "Hai.", type="count", question="đếm số con cá"),
    ]
    f = vqa.floors(train, asked)
    assert f["vqa/floor_majority"] == 2 / 4  # "hai", always
    assert f["vqa/floor_per_type"] == 3 / 4  # and "màu đỏ" for colours; an unseen type: "hai"
    assert f["vqa/floor_question_only"] == 1  # and "ba" for the boats
    assert f["vqa/floor_per_type/number"] == 0.5
    assert f["vqa/floor_per_type/color"] == 1


def test_a_profile_is_applied_to_both_sides():
    pairs = [("Hoà", "hòa"), ("2", "hai"), ("có 2 con", "Có hai con."), ("quý", "qúy")]
    rows = [answered(p, r) for p, r in pairs]
    names = ("accuracy", "f1_squad", "f1_uit", "anls", "cer")
    assert [vqa.score(rows, PROFILES["short"])[f"vqa/{n}"] for n in names] == [1, 1, 1, 1, 0]
    plain = vqa.score(rows)
    assert plain["vqa/accuracy"] == 0 and plain == vqa.score(rows, PROFILES["plain"])
    assert vqa.exact("hoà", "hòa") == 0 and vqa.exact("hoà", "hòa", PROFILES["ocr"]) == 1
    assert vqa.accuracy("hoà", ["đỏ", "hòa"], PROFILES["ocr"]) == 1


def test_floors_and_ceiling_follow_the_profile():
    train = [
        QA("0", "vqa", "có mấy bông hoa khoẻ", ("hai",), "number"),
        QA("1", "vqa", "có mấy con chim", ("2",), "number"),
        QA("2", "vqa", "màu gì", ("đỏ",), "color"),
        QA("3", "vqa", "màu gì", ("đỏ",), "color"),
        QA("4", "vqa", "ở đâu", ("your answer",), "place"),
        QA("5", "caption", "", ("ba con mèo",)),
    ]
    asked = [
        answered("", "2", type="number", question="có mấy bông hoa khỏe"),
        answered("", "Hai.", type="number", question="có mấy quả"),
        answered("", "ba con mèo", type="number", question="có gì"),
        answered("", "xanh", "đỏ", type="color"),
    ]
    short = vqa.floors(train, asked, PROFILES["short"])
    assert vqa.answer_vocabulary(train, PROFILES["short"]) == {"hai": 2, "đỏ": 2}
    assert short["vqa/ceiling_train_answers"] == 3 / 4
    assert short["vqa/floor_per_type"] == short["vqa/floor_question_only"] == 3 / 4
    plain = vqa.floors(train, asked)
    assert vqa.answer_vocabulary(train) == {"đỏ": 2, "hai": 1, "2": 1}
    assert plain["vqa/floor_majority"] == 1 / 4
    assert plain["vqa/ceiling_train_answers"] == 3 / 4
    assert plain["vqa/floor_per_type"] == 2 / 4


def test_placeholders_are_counted_and_not_scored():
    rows = [
        answered("your answer", "your answer"),
        answered("your answer", "Your answer.", "đỏ"),
        answered("đỏ", "đỏ", "your answer"),
    ]
    m = vqa.score(rows)
    assert m["vqa/placeholders"] == 1 and m["vqa/count"] == 2 and m["vqa/accuracy"] == 0.5
    assert m["vqa/f1_uit"] == 0.5  # over the real references alone
    assert vqa.score(rows[:1]) == {"vqa/placeholders": 1}
    assert vqa.floors([QA("0", "vqa", "gì", ("your answer",))], rows) == {}
    assert "vqa/placeholders" not in vqa.score(rows[2:])


@pytest.mark.real_data
def test_the_ceiling_of_real_answers(real_data):
    with open(real_data / "vivqa/train.csv", encoding="utf-8", newline="") as f:
        rows = list(csv.DictReader(f))
    qa = [QA(str(i), "vqa", r["question"], (r["answer"],), r["type"]) for i, r in enumerate(rows)]
    train, held = [q for i, q in enumerate(qa) if i % 5], qa[::5]
    asked = [Prediction(q.id, 0, q.id, "vqa", q.type, q.question, q.answers, "") for q in held]
    for profile in (PROFILES["plain"], PROFILES["short"]):
        f = vqa.floors(train, asked, profile)
        assert 0.03 < f["vqa/floor_majority"] < f["vqa/floor_per_type"] < 0.2
        assert f["vqa/floor_per_type"] < f["vqa/floor_question_only"] < 0.3
        assert 0.95 < f["vqa/ceiling_train_answers"] <= 1


def test_predictions_round_trip(tmp_path):
    path = tmp_path / "predictions.jsonl"
    rows = [answered("hai\u2028con", "hai", "2"), answered("", "màu đỏ")]
    predictions_lib.write(path, rows)
    assert predictions_lib.read(path) == rows
    assert "màu đỏ" in path.read_text(encoding="utf-8")
    assert list(tmp_path.iterdir()) == [path]

    def broken():
        yield rows[0]
        raise RuntimeError

    with pytest.raises(RuntimeError):
        predictions_lib.write(path, broken())
    assert predictions_lib.read(path) == rows
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    "line",
    [b"{", b"[]", b"\xff\xfe", b"{}", b"\n", b"[" * 100_000]
    + [
        json.dumps({**answered("hai", "hai").__dict__, **change}).encode()
        for change in ({"answers": "hai"}, {"record_index": "0"}, {"prediction": 2}, {"x": 1})
    ],
)
def test_a_broken_prediction_names_file_and_line(tmp_path, line):
    path = tmp_path / "predictions.jsonl"
    predictions_lib.write(path, [answered("hai", "hai")])
    path.write_bytes(path.read_bytes() + line)
    with pytest.raises(UserError, match=r"predictions\.jsonl:2: "):
        predictions_lib.read(path)


def test_files_that_cannot_be_read_or_written(tmp_path):
    with pytest.raises(UserError, match=r"none\.jsonl: No such file"):
        predictions_lib.read(tmp_path / "none.jsonl")
    with pytest.raises(UserError, match=r"p\.jsonl: cannot write"):
        predictions_lib.write(tmp_path / "none" / "p.jsonl", [])
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"p\.jsonl: cannot write"):
        predictions_lib.write(tmp_path / "file" / "p.jsonl", [])


def test_half_a_surrogate_pair_survives(tmp_path):
    rows = [answered("màu đỏ \ud800", "màu đỏ")]
    predictions_lib.write(tmp_path / "p.jsonl", rows)
    assert predictions_lib.read(tmp_path / "p.jsonl") == rows
