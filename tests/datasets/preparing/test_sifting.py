"""Annotations to records: what is kept, what is left out, what splits share."""

import unicodedata

import pytest

from vimoe_jax.base.errors import UserError
from vimoe_jax.datasets.annotations import Asked, Malformed, Picture
from vimoe_jax.datasets.preparing import sifting
from vimoe_jax.datasets.preparing.files import Files, NoPicture
from vimoe_jax.datasets.preparing.pictures import Verdict
from vimoe_jax.datasets.published import Dataset
from vimoe_jax.datasets.records import QA


def dataset(read=None, **kwargs):
    return Dataset(
        name="made_up", title="Made up", description="", citation="", licence="", homepage="",
        task="vqa", splits=("train", "validation", "test"), expected=("train.csv", "test.csv"),
        read=read, **kwargs,
    )  # fmt: skip


def asked(number, picture, question, *answers, task="vqa", coco=None, **kwargs):
    qa = QA(f"q{number}", task, question, answers, **kwargs)
    return Asked(f"a.csv:{number}", Picture(picture, (f"{picture}.jpg",), coco), qa)


def sift(splits, find=None, check=None, drop_leaked=False, **kwargs):
    annotations = {name: iter(rows) for name, rows in splits.items()}
    return sifting.sift(dataset(**kwargs), annotations, find, check, drop_leaked=drop_leaked)


def sift_train(*rows, **kwargs):
    return sift({"train": rows}, **kwargs).splits["train"]


def kept(split):
    return [(r.id, q.question, q.answers) for r in split.records for q in r.qa]


def left(split):
    return {reason: found.count for reason, found in split.left_out.items()}


def test_a_picture_is_one_record_with_all_its_questions():
    split = sift_train(
        asked(1, "a", "màu gì", "đỏ"), asked(2, "b", "màu gì", "xanh"),
        asked(3, "a", "con gì", "mèo", type="object"),
    )  # fmt: skip
    assert [r.id for r in split.records] == ["a", "b"]
    assert [q.id for q in split.records[0].qa] == ["q1", "q3"]
    assert split.records[0].qa[1].type == "object"
    assert split.left_out == {} and split.annotations == 3


def test_text_that_cannot_be_used_is_left_out_with_its_place():
    split = sift_train(
        Malformed("a.csv:9", "no answer"),
        asked(1, "a", " \u200b?", "đỏ"),
        asked(2, "a", "màu gì", " ", "\u200b"),
        asked(3, "a", "màu gì", "Your  Answer"),
        asked(4, "a", "màu gì", "", "your answer", "đỏ"),
        asked(5, "a", "màu gì"),
    )
    assert kept(split) == [("a", "màu gì", ("đỏ",))]
    assert left(split) == {
        "malformed annotation": 1, "empty question": 1, "empty answer": 2, "placeholder answer": 1,
    }  # fmt: skip
    assert split.left_out["malformed annotation"].examples == [
        {"where": "a.csv:9", "text": "no answer"}
    ]
    assert split.left_out["placeholder answer"].examples == [
        {"where": "a.csv:3", "text": "Your  Answer"}
    ]
    assert split.left_out["empty answer"].pictures == {"a"}


def test_examples_are_few_short_and_can_be_written():
    rows = [asked(i, "a", "", f"{i}" * 500 + "\ud800") for i in range(9)]
    found = sift_train(*rows).left_out["empty question"]
    assert found.count == 9 and len(found.examples) == 5
    bad = asked(1, "a", "màu\ngì", "\ud800" * 500)
    split = sift_train(bad, asked(2, "a", "màu gì", "\ud800" * 500, explanations=("\n", "vì\nthế")))
    example = split.left_out["duplicate"].examples[0]["text"]
    assert len(example) == 120 and example.endswith("…")
    example.encode("utf-8")
    assert kept(split)[0][1] == "màu gì"
    assert split.records[0].qa[0].explanations == ("vì thế",)


def test_duplicates_are_kept_once_whatever_their_spelling():
    decomposed = unicodedata.normalize("NFD", "màu gì")
    split = sift_train(
        asked(1, "a", "màu gì", "đỏ"), asked(2, "a", f" {decomposed.upper()} ", "Đỏ "),
        asked(3, "b", "màu gì", "đỏ"),
    )  # fmt: skip
    assert kept(split) == [("a", "màu gì", ("đỏ",)), ("b", "màu gì", ("đỏ",))]
    assert left(split) == {"duplicate": 1}


CONTRADICTING = [
    asked(1, "a", "màu gì", "đỏ"), asked(2, "a", "màu gì", "xanh"), asked(3, "a", "màu gì", "đỏ"),
    asked(4, "a", "con gì", "mèo"),
]  # fmt: skip


def test_contradictions_are_not_kept_from_train():
    split = sift_train(*CONTRADICTING)
    assert kept(split) == [("a", "con gì", ("mèo",))]
    assert left(split) == {"conflicting duplicates": 3}
    assert split.left_out["conflicting duplicates"].examples[0] == {
        "where": "a.csv:1", "text": "màu gì: đỏ | xanh | đỏ",
    }  # fmt: skip
    assert split.contradictions.count == 0


def test_contradictions_are_references_in_evaluation():
    split = sift({"test": CONTRADICTING}).splits["test"]
    assert kept(split) == [("a", "màu gì", ("đỏ", "xanh")), ("a", "con gì", ("mèo",))]
    assert left(split) == {"duplicate": 1}
    assert split.contradictions.count == 1


def test_open_answers_never_contradict():
    split = sift_train(*CONTRADICTING, open_ended=True)
    assert kept(split)[0] == ("a", "màu gì", ("đỏ", "xanh"))
    several = asked(1, "a", "màu gì", "đỏ", "đỏ thẫm"), asked(2, "a", "màu gì", "xanh")
    split = sift_train(*several)
    assert kept(split) == [("a", "màu gì", ("đỏ", "đỏ thẫm", "xanh"))]
    assert split.left_out == {}


def test_captions_of_a_picture_are_references_of_one_question():
    rows = [
        asked(i, "a", "", text, task="caption")
        for i, text in enumerate(["Một con mèo.", "Con mèo nằm.", "một con mèo."])
    ]
    split = sift_train(*rows, asked(9, "a", "con gì", "mèo"))
    assert kept(split) == [("a", "", ("Một con mèo.", "Con mèo nằm.")), ("a", "con gì", ("mèo",))]
    assert left(split) == {"duplicate": 1}


def test_answers_stay_one_line_each():
    split = sift_train(asked(1, "a", "biển ghi gì", "phở\nbò"))
    assert kept(split) == [("a", "biển ghi gì", ("phở bò",))]


def test_explanations_of_duplicates_are_joined():
    split = sift_train(
        asked(1, "a", "gì", "mèo", explanations=("có râu",)),
        asked(2, "a", "gì", "mèo", explanations=("có râu", "kêu meo")),
    )
    assert split.records[0].qa[0].explanations == ("có râu", "kêu meo")


def test_pictures_that_are_missing_ambiguous_or_unreadable(tmp_path):
    def find(picture, split):
        if picture.id in ("missing", "ambiguous"):
            raise NoPicture(f"{picture.id} image")
        return tmp_path / f"{picture.id}.jpg"

    seen = []

    def check(paths):
        seen.extend(paths)
        return {p: Verdict(p.name, "truncated" if p.stem == "broken" else "") for p in paths}

    names = ("missing", "ambiguous", "broken", "good", "broken")
    rows = [asked(i, name, f"câu {i}", "đỏ") for i, name in enumerate(names)]
    split = sift_train(*rows, asked(9, "blank", "", "đỏ"), find=find, check=check)
    assert [r.path for r in split.records] == [tmp_path / "good.jpg"]
    assert split.records[0].digest == "good.jpg"
    assert left(split) == {
        "empty question": 1, "missing image": 1, "ambiguous image": 1, "unreadable image": 2,
    }  # fmt: skip
    assert split.left_out["unreadable image"].pictures == {"broken"}
    assert split.left_out["unreadable image"].examples[0]["text"] == "broken.jpg: truncated"
    assert split.left_out["missing image"].examples[0]["text"] == "missing.jpg"
    assert [p.stem for p in seen] == ["broken", "good"]  # each once, and none without need


LEAKY = {
    "train": [
        asked(1, "a", "màu gì", "đỏ"), asked(2, "a", "con gì", "mèo"), asked(3, "b", "màu gì", "x"),
        asked(4, "c", "ở đâu", "sân"),
    ],
    "validation": [asked(5, "d", "màu gì", "đỏ")],
    "test": [asked(6, "a", "MÀU GÌ ", "đỏ"), asked(7, "a", "mấy con", "hai")],
}  # fmt: skip


def by_splits(sifted):
    return {s.splits: (s.pictures, s.pairs) for s in sifted.shared}


def test_what_splits_share_is_counted():
    sifted = sift(LEAKY)
    assert by_splits(sifted) == {
        ("train", "validation"): (0, 0), ("train", "test"): (1, 1), ("validation", "test"): (0, 0),
    }  # fmt: skip
    assert sifted.shared[1].examples == ("a",)
    assert len(sifted.splits["train"].records) == 3


def test_leaked_pictures_are_dropped_from_train_on_request():
    sifted = sift(LEAKY, drop_leaked=True)
    train = sifted.splits["train"]
    assert [r.id for r in train.records] == ["b", "c"]
    assert left(train) == {"leaked to test": 2}
    assert train.left_out["leaked to test"].pictures == {"a"}
    assert len(sifted.splits["test"].records) == 1
    assert by_splits(sifted)["train", "test"] == (1, 1)  # what was there before


def test_the_same_content_or_coco_number_is_the_same_picture(tmp_path):
    def sift_as(one, other):
        rows = {"train": [one], "test": [other]}
        digests = {"copy_a": "same", "copy_b": "same"}
        return sift(
            rows,
            find=lambda picture, split: tmp_path / picture.id,
            check=lambda paths: {p: Verdict(digests.get(p.name, p.name)) for p in paths},
            drop_leaked=True,
        )

    content = sift_as(asked(1, "copy_a", "gì", "x"), asked(2, "copy_b", "gì", "x"))
    coco = sift_as(asked(1, "42", "gì", "x", coco=42), asked(2, "COCO_42", "gì", "y", coco=42))
    other = sift_as(asked(1, "42", "gì", "x", coco=42), asked(2, "43", "gì", "x", coco=43))
    assert by_splits(content) == by_splits(coco) == {("train", "test"): (1, 1)}
    assert content.splits["train"].records == coco.splits["train"].records == []
    assert by_splits(other) == {("train", "test"): (0, 0)}


def test_splits_that_number_their_pictures_anew_share_none(tmp_path):
    rows = {"train": [asked(1, "1", "gì", "x")], "test": [asked(2, "1", "gì", "x")]}
    read = sift(
        rows,
        find=lambda picture, split: tmp_path / split,
        check=lambda paths: {p: Verdict(p.name) for p in paths},
        drop_leaked=True,
    )
    assert by_splits(read) == {("train", "test"): (0, 0)}
    assert len(read.splits["train"].records) == 1
    named = Asked("a", Picture("1", ("other.jpg",)), QA("1", "vqa", "gì", ("x",)))
    assert by_splits(sift(rows)) == {("train", "test"): (1, 1)}
    assert by_splits(sift(rows | {"test": [named]})) == {("train", "test"): (0, 0)}


def test_captions_share_pictures_but_no_questions():
    caption = asked(1, "a", "", "Một con mèo.", task="caption")
    assert by_splits(sift({"train": [caption], "test": [caption]})) == {("train", "test"): (1, 0)}


def test_a_folder_without_annotations_says_what_was_expected(tmp_path):
    with pytest.raises(UserError, match=r"no annotations of Made up; expected train\.csv, test"):
        sifting.read(dataset(lambda files, variant: {}), Files(tmp_path), "default")


def test_splits_come_in_the_datasets_order(tmp_path):
    read = dataset(lambda files, variant: {"test": iter(()), "train": iter(())})
    assert list(sifting.read(read, Files(tmp_path), "default")) == ["train", "test"]
