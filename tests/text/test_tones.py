"""Tone placement against spelling rules written out, and on texts of all kinds."""

import json
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vimoe_jax.text.tones import ToneStyles, place, tone_style

TONES = ("\u0300", "\u0301", "\u0303", "\u0309", "\u0323")
ONSETS = (
    "", "b", "c", "ch", "d", "đ", "g", "gh", "h", "k", "kh", "l", "m", "n", "ng", "ngh", "nh", "p",
    "ph", "r", "s", "t", "th", "tr", "v", "x",
)  # fmt: skip
# Rhymes of Vietnamese, "'" after the vowel that carries the tone in both styles.
RHYMES = (
    "a' e' ê' i' o' ô' ơ' u' ư' y' a'i a'o a'u a'y â'u â'y e'o ê'u i'a i'u iê'u yê'u o'i ô'i ơ'i "
    "u'a u'i uô'i ư'a ư'i ư'u ươ'i ươ'u oa'i oa'y oa'o oe'o uâ'y uê' uơ' uy'a uy'u "
    "a'n ă'ng â'm e'c ê'nh i'ch iê'ng o'ng oo'c ô'ng ơ'n u'ng ư'c ươ'ng uô'n yê'n "
    "oa'n oa'ng oa'nh oa'ch oa't oă'c oă'ng oe'n oe't uâ'n uâ't uy't uy'nh uy'ch uyê'n uyê't uê'ch"
).split()


def spelt(onset, rhyme, tone):
    """A syllable with its tone where the quote stands."""
    return unicodedata.normalize("NFC", onset + rhyme.replace("'", tone))


@pytest.mark.parametrize("rhyme", RHYMES)
def test_syllables_spelt_in_one_way_stay(rhyme):
    for onset in ONSETS:
        for tone in TONES:
            word = spelt(onset, rhyme, tone)
            for form in (word, word.upper(), word.title()):
                assert place(form, "old") == place(form, "new") == form
                assert tone_style(form) == (0, 0, 0)


@pytest.mark.parametrize("old, new", [("o'a", "oa'"), ("o'e", "oe'"), ("u'y", "uy'")])
def test_open_syllables_follow_the_style(old, new):
    for onset in (*ONSETS, "gi"):
        for tone in TONES:
            a, b = spelt(onset, old, tone), spelt(onset, new, tone)
            for x, y in ((a, b), (a.upper(), b.upper()), (a.title(), b.title())):
                for given_ in (x, y, unicodedata.normalize("NFD", x)):
                    assert place(given_, "old") == x
                    assert place(given_, "new") == y
                assert tone_style(x) == (1, 0, 0) and tone_style(y) == (0, 1, 0)


@pytest.mark.parametrize(
    "word",
    "quý quà quả quế quở quốc quyết quỳ quẻ quặng quấy quỷ giá giò già giữ giặt gịa gì gìn giếng"
    " hoa khoe thuy xoong".split(),
)
def test_qu_gi_and_no_tone(word):
    for form in (word, word.upper(), word.title()):
        assert place(form, "old") == place(form, "new") == form


@pytest.mark.parametrize(
    "slipped, right",
    [("hòan", "hoàn"), ("tóan", "toán"), ("qúy", "quý"), ("qủa", "quả"), ("khủyu", "khuỷu"),
     ("thúê", "thuế"), ("HÒANG", "HOÀNG"), ("lọai", "loại"), ("thúyên", "thuyến"),
     ("cuả", "của"), ("nghiã", "nghĩa"), ("LƯẠ", "LỰA"), ("giưã", "giữa"), ("uà", "ùa")],
)  # fmt: skip
def test_marks_that_slipped_are_put_right_in_both_styles(slipped, right):
    assert place(slipped, "old") == place(slipped, "new") == right
    assert tone_style(slipped) == (0, 0, 1)


def test_style_keep_only_composes():
    text = "hòa hoà hòan"
    assert place(unicodedata.normalize("NFD", text), "keep") == text


@pytest.mark.parametrize(
    "text",
    [
        "café Zoë naïve Cancún São León coração où là-bas fiancé Élysée",
        "https://vi.wikipedia.org/wiki/Hoà hoà@thuý.vn www.hòa.vn/thuý `x = hoà + hòa`",
        "hoà2 2hòa thuý3x",
        "👩‍👩‍👧‍👦 👍🏽 🇻🇳 2️⃣ ホア 호아",
        "hoà\u0302 x\u0301hòa",  # marks that compose with nothing
        "òà hóá hoàa thuyý oòa",
    ],
)
def test_what_is_no_vietnamese_syllable_is_left_alone(text):
    text = unicodedata.normalize("NFC", text)
    assert place(text, "old") == place(text, "new") == text


def test_syllables_among_other_things():
    text = "Hoà (thuý), “khoẻ”/hoá: hòa_bình hoà-thuận…👩‍👩‍👧hoà!"
    old = "Hòa (thúy), “khỏe”/hóa: hòa_bình hòa-thuận…👩‍👩‍👧hòa!"
    assert place(text, "old") == old
    assert tone_style(text) == (1, 6, 0)
    assert tone_style(old) == (7, 0, 0)
    assert place("xem https://x.vn/hoà rồi hoà", "old") == "xem https://x.vn/hoà rồi hòa"


pieces = st.sampled_from(
    [*"oauyeêquhnti .,_`@/2", "hoà", "HÒA", "qúy", "www.", "đ", *TONES, "\u200d"]
)


@given(st.one_of(st.text(), st.lists(pieces, max_size=14).map("".join)))
def test_laws(text):
    old, new = place(text, "old"), place(text, "new")
    assert place(old, "old") == old and place(new, "new") == new
    assert place(new, "old") == old and place(old, "new") == new
    for other in (old, new):
        assert unicodedata.is_normalized("NFC", other)
        assert [len(w) for w in other.split()] == [
            len(w) for w in unicodedata.normalize("NFC", text).split()
        ]
    assert place(unicodedata.normalize("NFD", text), "old") == old


@pytest.mark.real_data
def test_styles_of_real_texts(real_data):
    def counts(*parts):
        return ToneStyles(*map(sum, zip(*map(tone_style, parts), strict=True)))

    vivqa = (real_data / "vivqa/train.csv").read_text("utf-8")
    files = (real_data / "uit_viic").glob("uitviic_captions_*.json")
    uit = [a["caption"] for f in files for a in json.loads(f.read_text("utf-8"))["annotations"]]
    assert counts(vivqa) == (479, 6, 0)
    assert counts(*uit) == (4, 27, 1)
    for text in (vivqa, *uit):
        old = place(text, "old")
        before, after = tone_style(text), tone_style(old)
        assert after == (before.old + before.new, 0, 0)
        changed = [a != b for a, b in zip(text.split(), old.split(), strict=True)]
        assert sum(changed) == before.new + before.misplaced
