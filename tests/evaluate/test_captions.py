"""Caption scores against values worked out by hand, and known identities."""

import math
import unicodedata

import pytest

from vimoe_jax.evaluate import captions
from vimoe_jax.evaluate.predictions import Prediction

REFERENCES = (
    ("Một con mèo đen nằm ngủ trên ghế.", "Con mèo đen đang ngủ trên chiếc ghế gỗ."),
    ("Hai quả táo đỏ nằm trên bàn.", "Trên bàn có hai quả táo màu đỏ."),
    ("Chiếc thuyền trắng trôi trên mặt hồ.", "Một chiếc thuyền trắng lướt giữa hồ."),
)


def captioned(*pairs):
    return [
        Prediction(str(i), i, f"{i}/0", "caption", "", "", tuple(references), prediction)
        for i, (references, prediction) in enumerate(pairs)
    ]


def test_tokens_are_syllables_without_punctuation():
    nfd = unicodedata.normalize("NFD", "Hai quả táo, màu ĐỎ (trên bàn)…")
    assert captions.tokenize(nfd) == "hai quả táo màu đỏ trên bàn"
    assert captions.tokenize("xe_máy: 2 chiếc!") == "xe máy 2 chiếc"


def test_a_caption_equal_to_a_reference():
    m = captions.score(captioned(*[(r, r[1]) for r in REFERENCES]))
    for n in range(1, 5):
        assert m[f"caption/bleu_{n}"] == pytest.approx(1, abs=1e-6)
    assert m["caption/rouge_l"] == pytest.approx(1)
    assert m["caption/exact"] == 1
    assert m["caption/count"] == 3
    assert 1 < m["caption/cider"] < 10  # the other reference says it differently


def test_the_perfect_set_has_cider_ten():
    m = captions.score(captioned(*[((r[0], r[0]), r[0].upper()) for r in REFERENCES]))
    assert m["caption/cider"] == pytest.approx(10)


def test_bleu_and_rouge_by_hand():
    # 3 of 4 syllables and 2 of 3 pairs occur in the reference of 4 syllables.
    m = captions.score(captioned((["con mèo đen ngủ"], "con mèo đen chạy")))
    assert m["caption/bleu_1"] == pytest.approx(3 / 4, abs=1e-6)
    assert m["caption/bleu_2"] == pytest.approx(math.sqrt(3 / 4 * 2 / 3), abs=1e-6)
    assert m["caption/rouge_l"] == pytest.approx(3 / 4)
    # Two right syllables of a reference of four: precision 1, brevity penalty e^(1 - 4/2).
    m = captions.score(captioned((["con mèo đen ngủ"], "con mèo")))
    assert m["caption/bleu_1"] == pytest.approx(math.exp(-1), abs=1e-6)
    precision, recall, beta = 1, 1 / 2, 1.2
    rouge = (1 + beta**2) * precision * recall / (recall + beta**2 * precision)
    assert m["caption/rouge_l"] == pytest.approx(rouge)


def test_cider_by_hand():
    # Every n-gram of one picture is in one document of two: all weights are ln 2. In n-grams up to
    # 4 of "a b c d": unigrams 1 of 1 common, … For "con mèo đen chạy": cosines 3/4, 2/3, 1/2, 0.
    pairs = ((["con mèo đen ngủ"], "con mèo đen chạy"), (["hai quả táo đỏ"], "hai quả táo đỏ"))
    m = captions.score(captioned(*pairs))
    # "chạy" is in no reference: its document frequency counts as 1, so its weight is ln 2 as well.
    first = 10 * (3 / 4 + 2 / 3 + 1 / 2 + 0) / 4
    assert m["caption/cider"] == pytest.approx((first + 10) / 2)


def test_empty_captions_score_zero(capsys):
    m = captions.score(captioned(*[(r, "") for r in REFERENCES]))
    assert m.pop("caption/count") == 3
    assert {"caption/bleu_4", "caption/rouge_l", "caption/cider"} <= m.keys()
    assert all(v == pytest.approx(0, abs=1e-6) for v in m.values())
    one = captions.score(captioned((REFERENCES[0], ""), (REFERENCES[1], REFERENCES[1][0])))
    assert 0 < one["caption/cider"] < 10
    assert capsys.readouterr() == ("", "")


def test_no_cider_for_a_single_picture():
    m = captions.score(captioned((REFERENCES[0], REFERENCES[0][0])))
    assert "caption/cider" not in m
    assert m["caption/bleu_4"] == pytest.approx(1, abs=1e-6)


def test_nothing_to_score():
    assert captions.score([]) == {}
    assert captions.score(captioned(((), "một con mèo"), (("…",), "một con mèo"))) == {}
    other = Prediction("0", 0, "0/1", "vqa", "number", "có mấy con mèo", ("hai",), "hai")
    assert captions.score([other]) == {}
