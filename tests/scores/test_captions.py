"""Caption scores against values worked out by hand, and known identities."""

import math
import sys
import unicodedata

import pytest

from vimoe_jax.base.errors import UserError
from vimoe_jax.scores import captions
from vimoe_jax.scores.predictions import Prediction
from vimoe_jax.text.normalize import PROFILES

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


def test_a_profile_is_applied_to_both_sides():
    pairs = [((r[0] + " thuý",), r[0].upper() + " THÚY") for r in REFERENCES]
    m = captions.score(captioned(*pairs), PROFILES["caption"])
    assert m["caption/exact"] == m["caption/rouge_l"] == 1
    assert m["caption/cider"] == pytest.approx(10)
    plain = captions.score(captioned(*pairs))
    assert plain["caption/exact"] == 0 and plain["caption/rouge_l"] < 1


@pytest.fixture
def without_segmenters(monkeypatch):
    for name in ("pyvi", "pyvi.ViTokenizer", "underthesea"):
        monkeypatch.setitem(sys.modules, name, None)
    captions._segmenter.cache_clear()
    yield monkeypatch
    captions._segmenter.cache_clear()


@pytest.fixture
def with_pyvi(without_segmenters, tmp_path):
    """A stand-in that joins "xe máy" and "con mèo"."""
    for name in ("pyvi", "pyvi.ViTokenizer"):
        without_segmenters.delitem(sys.modules, name)
    (tmp_path / "pyvi").mkdir()
    (tmp_path / "pyvi/__init__.py").touch()
    (tmp_path / "pyvi/ViTokenizer.py").write_text(
        "def tokenize(text):\n"
        "    for word in ('xe máy', 'con mèo'):\n"
        "        text = text.replace(word, word.replace(' ', '_'))\n"
        "    return text.replace('.', ' .')\n",
        "utf-8",
    )
    (tmp_path / "pyvi-0.1.dist-info").mkdir()
    (tmp_path / "pyvi-0.1.dist-info/METADATA").write_text("Name: pyvi\nVersion: 0.1\n")
    without_segmenters.syspath_prepend(tmp_path)


def test_words_need_a_segmenter(without_segmenters):
    for ask in (
        lambda: captions.tokenize("con mèo", tokenization="word"),
        lambda: captions.describe("word"),
        lambda: captions.score(captioned((REFERENCES[0], "con mèo")), tokenization="word"),
    ):
        with pytest.raises(UserError, match=r"eval\.tokenization: .*pyvi or underthesea"):
            ask()


def test_words(with_pyvi):
    text = "Một CON MÈO, ngồi trên (xe_máy). xe máy!"
    assert captions.tokenize(text, tokenization="word") == "một con_mèo ngồi trên xe_máy xe_máy"
    assert captions.tokenize(text) == "một con mèo ngồi trên xe máy xe máy"
    assert captions.describe("word") == "words, segmented by pyvi 0.1, punctuation dropped"
    # Of four words three are right, of six syllables five.
    rows = captioned((["một con mèo trên xe máy"], "hai con mèo trên xe máy"))
    assert captions.score(rows, tokenization="word")["caption/bleu_1"] == pytest.approx(3 / 4)
    assert captions.score(rows)["caption/bleu_1"] == pytest.approx(5 / 6)


@pytest.mark.peer
@pytest.mark.parametrize("name", ["pyvi", "underthesea"])
def test_real_segmenters(name, without_segmenters):
    without_segmenters.undo()
    pytest.importorskip(name)
    for other in {"pyvi", "underthesea"} - {name}:
        without_segmenters.setitem(sys.modules, other, None)
        without_segmenters.setitem(sys.modules, f"{other}.ViTokenizer", None)
    assert captions.describe("word").startswith(f"words, segmented by {name} ")
    cut = captions.tokenize("Hai người đàn ông, chơi bóng đá.", tokenization="word")
    assert cut == "hai người đàn_ông chơi bóng_đá"
