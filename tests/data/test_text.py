import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vimoe_jax.data.text import normalize


@pytest.mark.parametrize(
    "raw, clean",
    [
        (unicodedata.normalize("NFD", "Trường học ở đâu"), "Trường học ở đâu"),
        ("tho\u031b\u0300i tiê\u0301t", "thời tiết"),  # mixed forms
        ("con\u200b mèo\ufeff", "con mèo"),
        ("me\u200b\u0300o", "mèo"),  # a zero-width space between a letter and its tone mark
        ("\ufeffmàu của chiếc bình", "màu của chiếc bình"),
        ("  quả\u00a0táo \t màu\n\nđỏ\u3000", "quả táo màu đỏ"),
        ("bức ảnh đẹp 😍", "bức ảnh đẹp 😍"),
        ("xin\x00 chào\x07", "xin chào"),
        ("\u200e\u202a \u2060", ""),
        ("lỗi \ud800 mã", "lỗi \ufffd mã"),
    ],
)
def test_normalize(raw, clean):
    assert normalize(raw) == clean


@pytest.mark.parametrize("word", ["hòa", "hoà", "thúy", "thuý"])
def test_tone_placement_is_kept(word):
    assert normalize(word) == word


@given(st.text())
def test_normalize_is_idempotent_and_encodable(text):
    once = normalize(text)
    assert normalize(once) == once
    assert unicodedata.is_normalized("NFC", once)
    once.encode("utf-8")


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_composed_and_decomposed_agree(text):
    assert normalize(unicodedata.normalize("NFD", text)) == normalize(
        unicodedata.normalize("NFC", text)
    )
