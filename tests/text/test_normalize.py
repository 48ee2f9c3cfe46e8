import dataclasses
import json
import pickle
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vimoe_jax.text.normalize import PLAIN, PROFILES, Profile, is_placeholder, normalize


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


def test_plain():
    nfd = unicodedata.normalize("NFD", "Màu Đỏ")
    for text in ("màu đỏ", " Màu Đỏ. ", nfd, "MÀU  ĐỎ .", "màu\u200b đỏ"):
        assert PLAIN(text) == "màu đỏ", text
    assert PLAIN("màu đỏ...") == "màu đỏ..."  # an ellipsis is no full stop
    assert PLAIN("Hòa, hoà: 2 con") == "hòa, hoà: 2 con"
    assert PLAIN(".") == PLAIN("") == ""


SAME = {
    "short": [("Hoà.", "hòa"), ("2", "hai"), ("Hai mươi tư", "24"), ("quý", "qúy")],
    "open": [
        ("Có 2 con, màu “đỏ”.", "có hai con màu đỏ"),
        ("thuỷ thủ (đứng)", "Thủy thủ đứng"),
        ("2,5 mét", "2,5 mét!"),
    ],
    "ocr": [("HOÀNG THUỲ LINH", "Hoàng Thùy Linh."), ("１", "１")],
    "caption": [("Hai thuý, hoà", "hai thúy hòa")],
}
OTHER = {
    "plain": [("hòa", "hoà"), ("2", "hai"), ("a, b", "a b")],
    "short": [("a, b", "a b"), ("quý", "quỷ"), ("năm 1", "5 1"), ("d", "đ")],
    "open": [("2,5 mét", "25 mét"), ("con mèo", "conmèo"), ("a-b", "ab")],
    "ocr": [("2", "hai"), ("1984", "1.984"), ("Đ", "D")],
    "caption": [("2 con", "hai con")],
}


def test_what_each_profile_makes_equal():
    assert SAME.keys() | OTHER.keys() == PROFILES.keys()
    for name, pairs in SAME.items():
        for a, b in pairs:
            assert PROFILES[name](a) == PROFILES[name](b), (name, a, b)
    for name, pairs in OTHER.items():
        for a, b in pairs:
            assert PROFILES[name](a) != PROFILES[name](b), (name, a, b)


def test_emoji_stay_and_punctuation_goes():
    strip = Profile(punctuation="strip")
    assert strip("Đẹp quá!!! 😍👍🏽, nhỉ…") == "Đẹp quá 😍👍🏽 nhỉ"
    assert strip("xe_máy/ô-tô: 10:30, 2.5 (m)") == "xe máy ô tô 10:30 2.5 m"
    assert strip("「猫」。") == "猫"
    assert strip("…") == ""


def test_profiles_are_values_that_name_themselves():
    profile = Profile("new", "digits", "strip", True)
    assert pickle.loads(pickle.dumps(profile)) == profile
    assert str(profile) == (
        "NFC, lower case, punctuation dropped, tone marks in the new place, numbers as digits"
    )
    assert str(Profile()) == "NFC"
    for field in ("tone", "numbers", "punctuation"):
        with pytest.raises(ValueError, match=f"{field}: must be one of"):
            dataclasses.replace(profile, **{field: "nue"})


ALL = [
    Profile(tone, numbers, punctuation, lower)
    for tone in ("old", "new", "keep")
    for numbers in ("words", "digits", "keep")
    for punctuation in ("keep", "stop", "strip")
    for lower in (False, True)
]
pieces = st.sampled_from(
    [*"oauyêqhnđĐİΣß .,…!?_-@`/()25５\u0301\u0323\u200b\u200d\ufe0f", "hoà ", "HÒA", " hai mươi ",
     "tư, ", " năm ", "một, ", " không ", "1.000", "www.", "👩\u200d👩\u200d👧", "e\u0302\u0301"]
)  # fmt: skip
texts = st.one_of(st.text(), st.lists(pieces, max_size=14).map("".join))


@given(texts, st.sampled_from(ALL))
def test_laws_of_profiles(text, profile):
    once = profile(text)
    assert profile(once) == once
    assert normalize(once) == once
    assert profile(normalize(text)) == once
    assert profile(unicodedata.normalize("NFD", normalize(text))) == once


@given(texts, st.sampled_from(["old", "new"]), st.sampled_from(["keep", "stop"]), st.booleans())
def test_syllables_are_never_joined_or_split(text, tone, punctuation, lower):
    known = normalize(normalize(text).lower() if lower else text)
    count = len(known.split()) - (punctuation == "stop" and known.split()[-1:] == ["."])
    made = Profile(tone, "keep", punctuation, lower)(text)
    assert len(made.split()) in (count, len(known.split()))


def test_placeholders():
    assert is_placeholder("your answer") and is_placeholder(" Your answer. ")
    assert not is_placeholder("câu trả lời") and not is_placeholder("")


@pytest.mark.real_data
def test_profiles_on_real_texts(real_data):
    path = real_data / "uit_viic/uitviic_captions_val2017.json"
    captions = json.loads(path.read_text("utf-8"))
    rows = [a["caption"] for a in captions["annotations"]]
    rows += (real_data / "text/ud_vtb_sentences.txt").read_text("utf-8").splitlines()
    rows += (real_data / "vivqa/train.csv").read_text("utf-8").splitlines()
    for name, profile in PROFILES.items():
        made = [profile(row) for row in rows]
        assert [profile(row) for row in made] == made, name
    tones_only = Profile(tone="old")
    for row in rows:
        assert len(tones_only(row)) == len(normalize(row))
