"""The facts about a sifted dataset."""

import unicodedata

from vimoe_jax.datasets.preparing import report
from vimoe_jax.datasets.preparing.kept import Kept
from vimoe_jax.datasets.preparing.sifting import Sifted, Split
from vimoe_jax.datasets.records import QA


def split(*qa, **kwargs):
    records = [Kept(q.id, f"{q.id}.jpg", None, None, "", (q,)) for q in qa]
    return Split(records, annotations=len(qa), **kwargs)


def vqa(name, question, *answers, **kwargs):
    return QA(name, "vqa", question, answers, **kwargs)


def facts(**splits):
    return report.report(Sifted(splits, []))["splits"]


def test_the_ceiling_is_what_trains_answers_can_score():
    train = split(vqa("1", "gì", "Mèo"), vqa("2", "gì", "chó", "con chó"))
    test = split(vqa("1", "gì", "mèo "), vqa("2", "gì", "gà", "con chó"), vqa("3", "gì", "cá"))
    answers = facts(train=train, test=test)["test"]["answers"]
    assert answers == {
        "references": 4, "distinct": 4, "distinct_in_train": 2, "ceiling": round(2 / 3, 6),
    }  # fmt: skip


def test_captions_are_no_classes():
    caption = QA("1", "caption", "", ("Một con mèo.", "Con mèo nằm."))
    found = facts(train=split(caption), test=split(caption))
    assert found["test"]["answers"] == {"references": 2}
    assert found["train"]["tasks"] == {"caption": 1} and found["train"]["types"] == {}


def test_text_tells_its_unicode_form_and_tone_style():
    old, new = vqa("1", "hòa thủy", "đỏ"), vqa("2", "hoà", unicodedata.normalize("NFD", "đỏ"))
    text = facts(train=split(old, new))["train"]["text"]
    assert text == {
        "texts": 4, "not_nfc": 1, "tones_old": 2, "tones_new": 1, "tones_misplaced": 0,
    }  # fmt: skip


def test_texts_are_all_that_training_shows():
    records = split(vqa("1", "gì", "mèo", explanations=("có râu",))).records
    records += split(QA("2", "caption", "", ("Một con chó.",))).records
    assert list(report.texts(records)) == ["gì", "mèo", "có râu", "Một con chó."]


def test_an_empty_split_has_a_report():
    found = facts(train=split(), test=split(vqa("1", "gì", "mèo")))
    assert found["train"]["questions"] == 0 and found["train"]["text"]["texts"] == 0
    assert "ceiling" not in found["test"]["answers"]
    assert report.summary({"splits": found, "shared": []})[0].startswith("train: 0 pictures")
