"""Where a Vietnamese syllable carries its tone mark: hòa or hoà, thúy or thuý, khỏe or khoẻ.

Both spellings are right and mean the same; they are different bytes. They differ only in open
syllables with oa, oe and uy. In every other syllable with a glide (hoàn, thuế, khuỷu, quý), and in
ia, ua, ưa (của), there is one right place; a mark that slipped to the vowel beside it (hòan, qúy,
cuả) is put there in either style.
"""

from __future__ import annotations

import functools
import re
import unicodedata
from typing import Literal, NamedTuple

Style = Literal["old", "new", "keep"]
STYLES: tuple[Style, ...] = ("old", "new", "keep")

_TONES = "\u0300\u0301\u0303\u0309\u0323"  # huyền, sắc, ngã, hỏi, nặng
# A syllable without its tone: onset, glide, nucleus, coda. After q, u never has the mark.
_ONSET = "b|c|ch|d|đ|g|gh|h|k|kh|l|m|n|ng|ngh|nh|p|ph|r|s|t|th|tr|v|x|gi"
_SYLLABLE = re.compile(
    rf"""
    (?: (?P<q>q) (?P<qu>u) (?P<qu_nucleus> yê | [aăâeêioôơy] )
      | (?:{_ONSET})? (?: (?P<o>o) (?P<o_nucleus> [aăe] )
                        | (?P<u>u) (?P<u_nucleus> yê | [âêơy] ) ) )
    (?P<coda> ch | ng | nh | [cmnpt] | [aiouy] )?
    """,
    re.VERBOSE | re.IGNORECASE,
)
# Open syllables whose first vowel has the mark. In gia either is right: giá, and giặt gịa.
_FALLING = re.compile(rf"(?!gia$)(?:{_ONSET})?[iuư]a", re.IGNORECASE)
# A word is all letters between what is neither letter, digit nor mark. An underscore ends a word,
# since segmenters join syllables with it.
_MARKS = "\u0300-\u036f"
_WORD = re.compile(rf"(?<![^\W_])(?<![{_MARKS}])[^\W\d_]++(?![^\W_]|[{_MARKS}])")
# What is not prose: addresses on the web, e-mail addresses, code between backticks.
_LITERAL = re.compile(r"(?:\w+://|www\.)\S+|\S+@\S+|`[^`\n]*`", re.IGNORECASE)


def place(text: str, style: Style) -> str:
    """The text in NFC with every tone mark where the style has it.

    Syllable by syllable, in any mixture of upper and lower case. Left alone: words that are no
    Vietnamese syllable, letters next to digits, web and e-mail addresses, `code` in backticks. A
    foreign word that is spelt like a syllable (Zoé is none, Noé is) cannot be recognised.
    """
    text = unicodedata.normalize("NFC", text)
    if style == "keep" or text.isascii():
        return text
    parts, end = [], 0
    for literal in _LITERAL.finditer(text):
        parts += [_place_prose(text[end : literal.start()], style), literal[0]]
        end = literal.end()
    return "".join(parts) + _place_prose(text[end:], style)


class ToneStyles(NamedTuple):
    """How many syllables of a text are spelt each way."""

    old: int
    new: int
    misplaced: int


def tone_style(text: str) -> ToneStyles:
    """Counts the syllables whose mark shows a style, and those that are right in neither."""
    text = _LITERAL.sub(" ", unicodedata.normalize("NFC", text))
    counts = [0, 0, 0]
    for word in _WORD.findall(text):
        old, new = _placed(word, "old"), _placed(word, "new")
        if old != new or word != old:
            counts[0 if word == old else 1 if word == new else 2] += 1
    return ToneStyles(*counts)


def _place_prose(text: str, style: Style) -> str:
    return _WORD.sub(lambda word: _placed(word[0], style), text)


@functools.lru_cache(maxsize=1 << 16)
def _placed(word: str, style: Style) -> str:
    """One word of NFC letters."""
    if word.isascii() or len(word) > 7:  # no syllable is longer than nghuyêng
        return word
    bare, tones = [], []
    for i, letter in enumerate(word):
        parts = unicodedata.normalize("NFD", letter)
        tones += [(i, c) for c in parts if c in _TONES]
        bare.append(unicodedata.normalize("NFC", "".join(c for c in parts if c not in _TONES)))
    if len(tones) != 1:
        return word
    (was, tone), place_of = tones[0], _places("".join(bare), style)
    # A mark elsewhere than on these two vowels did not slip: the word is not Vietnamese.
    if place_of is None or was not in place_of.vowels:
        return word
    bare[place_of.right] = unicodedata.normalize("NFC", bare[place_of.right] + tone)
    return "".join(bare)


class _Places(NamedTuple):
    vowels: range  # of glide and nucleus
    right: int  # the one with the mark


def _places(bare: str, style: Style) -> _Places | None:
    """Where a syllable without its tone would have it; None for every other word."""
    if _FALLING.fullmatch(bare):
        return _Places(range(len(bare) - 2, len(bare)), len(bare) - 2)
    if not (m := _SYLLABLE.fullmatch(bare)):
        return None
    nucleus = next(n for n in ("qu_nucleus", "o_nucleus", "u_nucleus") if m[n])
    vowels = range(m.start(nucleus) - 1, m.end(nucleus))
    open_pair = not m["q"] and not m["coda"] and m[nucleus].lower() in ("a", "e", "y")
    return _Places(vowels, vowels[0] if open_pair and style == "old" else vowels[-1])
