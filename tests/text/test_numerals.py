"""Cardinal numbers both ways, and what is no number."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vimoe_jax.text.normalize import normalize
from vimoe_jax.text.numerals import LARGEST, read, rewrite, value

BY_HAND = {
    1: "một", 4: "bốn", 5: "năm", 10: "mười", 11: "mười một", 14: "mười bốn", 15: "mười lăm",
    20: "hai mươi", 21: "hai mươi mốt", 24: "hai mươi bốn", 25: "hai mươi lăm", 51: "năm mươi mốt",
    55: "năm mươi lăm", 100: "một trăm", 101: "một trăm linh một", 105: "một trăm linh năm",
    110: "một trăm mười", 111: "một trăm mười một", 115: "một trăm mười lăm",
    121: "một trăm hai mươi mốt", 500: "năm trăm", 1000: "một nghìn",
    1001: "một nghìn không trăm linh một", 1010: "một nghìn không trăm mười",
    1100: "một nghìn một trăm", 2024: "hai nghìn không trăm hai mươi bốn",
    10_005: "mười nghìn không trăm linh năm", 21_000: "hai mươi mốt nghìn",
    100_000: "một trăm nghìn", 1_000_005: "một triệu không trăm linh năm",
    1_005_000: "một triệu không trăm linh năm nghìn", 15_000_000: "mười lăm triệu",
    300_300_300: "ba trăm triệu ba trăm nghìn ba trăm",
    LARGEST: " ".join(f"chín trăm chín mươi chín {n}" for n in ("triệu", "nghìn", "")).strip(),
}  # fmt: skip


def test_by_hand():
    for n, words in BY_HAND.items():
        assert read(n) == words
        assert value(words) == value(words.title()) == n
        assert rewrite(str(n), "words") == words
        assert rewrite(words, "digits") == str(n)


@given(st.integers(1, LARGEST) | st.integers(1, 9999))
def test_there_and_back(n):
    words = read(n)
    assert value(words) == n
    assert rewrite(words, "words") == words
    assert rewrite(rewrite(words, "digits"), "words") == words


@pytest.mark.parametrize(
    "words, n",
    [("hai mươi tư", 24), ("hai mươi nhăm", 25), ("mười nhăm", 15), ("bẩy mươi bẩy", 77),
     ("một trăm lẻ năm", 105), ("một trăm linh tư", 104), ("năm ngàn", 5000),
     ("một ngàn lẻ một", 1001), ("hai nghìn mười lăm", 2015), ("một triệu năm nghìn", 1_005_000),
     ("một triệu không nghìn không trăm linh năm", 1_000_005), ("hai mươi một", 21)],
)  # fmt: skip
def test_variants(words, n):
    assert value(words) == n
    assert rewrite(words, "words") == read(n)
    assert rewrite(f"có {words} con", "digits") == f"có {n} con"


@pytest.mark.parametrize(
    "text, words, digits",
    [
        ("hai", "hai", "2"),
        ("Bẩy", "bảy", "7"),
        ("2", "hai", "2"),
        ("năm", "năm", "5"),  # the whole answer
        ("có 2 con mèo", "có hai con mèo", "có 2 con mèo"),
        ("một con mèo", "một con mèo", "một con mèo"),
        ("hai mươi tư quả", "hai mươi bốn quả", "24 quả"),
        ("có 2.", "có hai.", "có 2."),
        ("“12”, (3)", "“mười hai”, (ba)", "“12”, (3)"),
        ("năm 2000", "năm hai nghìn", "năm 2000"),
        ("20 năm", "hai mươi năm", "20 năm"),
        ("hai mươi năm", "hai mươi năm", "20 năm"),
        ("giá 25.000 đồng", "giá hai mươi lăm nghìn đồng", "giá 25000 đồng"),
        ("２１", "hai mươi mốt", "21"),
        ("０ con", "không con", "0 con"),
    ],
)
def test_in_texts(text, words, digits):
    assert rewrite(text, "words") == words
    assert rewrite(text, "digits") == digits
    assert rewrite(text, "keep") == text


@pytest.mark.parametrize(
    "text",
    ["", "không", "tư", "mốt", "trăm", "mười năm", "ba năm", "một trăm hai", "một trăm năm",
     "hai nghìn năm", "hai trăm rưỡi", "một triệu rưỡi", "hai ba mươi người", "007", "1 000",
     "2.5", "2,5", "10:30", "50%", "5B", "B5", "-5", "2-3", "24/7", "2️⃣", "#1", "$5", "192.168.1.1",
     "0912345678", "1234567890", "1.000.000.000", "ba lô", "bà", "hai_mươi", "chín muồi ở mươi"],
)  # fmt: skip
def test_what_is_left_alone(text):
    assert rewrite(text, "words") == text
    assert rewrite(text, "digits") == text


def test_out_of_range():
    for n in (-1, LARGEST + 1):
        with pytest.raises(ValueError, match=str(n)):
            read(n)
    assert read(0) == "không" and value("không") is None  # "no", far more often
    assert value("con mèo") is value("21") is value("") is None


words = st.sampled_from(
    "một hai ba bốn năm sáu bảy mười mươi trăm nghìn ngàn triệu linh lẻ tư mốt lăm rưỡi không con"
    " 2 5 10 20 21 100 1.000 2000 007 , . Hai NĂM ５ 1, một, (5 (năm hai) 20.".split()
)


@given(st.lists(words, max_size=8).map(" ".join) | st.text(), st.sampled_from(["words", "digits"]))
def test_rewriting_twice_is_rewriting_once(text, style):
    once = rewrite(normalize(text), style)
    assert rewrite(once, style) == once
