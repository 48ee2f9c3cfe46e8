"""Where a Vietnamese syllable carries its tone mark: hòa or hoà, thúy or thuý, khỏe or khoẻ.

Both spellings are right and mean the same; they are different bytes. They differ only in open
syllables with oa, oe and uy. In every other syllable with a glide (hoàn, thuế, khuỷu, quý) there is
one right place, and a mark that slipped (hòan, qúy) is put there in either style.
"""

from __future__ import annotations

import functools
import re
import unicodedata
from typing import Literal, NamedTuple

Style = Literal["old", "new", "keep"]
STYLES: tuple[Style, ...] = ("old", "new", "keep")

_TONES = "\u0300\u0301\u0303\u0309\u0323"  # huyền, sắc, ngã, hỏi, nặng
# A syllable without its tone: onset, glide, nucleus, coda. The vowel after qu never shares its mark
# with u; ia, ua and the like have no glide and are no matter of style.
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
# A word is all letters between what is neither letter, digit nor mark. An underscore parts words,
# since segmenters join syllables with it.
_MARKS = "\u0300-\u036f"
_WORD = re.compile(rf"(?<![^\W_])(?<![{_MARKS}])[^\W\d_]++(?![^\W_]|[{_MARKS}])")
# What is not prose: addresses on the web, e-mail addresses, code between backticks.
_LITERAL = re.compile(r"(?:\w+://|www\.)\S+|\S+@\S+|`[^`]*`", re.IGNORECASE)


def place(text: str, style: Style) -> str:
    """The text in NFC with every tone mark where the style has it.

    Syllable by syllable, in any mixture of upper and lower case. Left alone: words that are no
    Vietnamese syllable, letters next to digits, web and e-mail addresses, `code` in backticks. A
    foreign word that happens to be spelt like a syllable (Zoé is none, Noé is) cannot be told.
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
    """Counts the syllables whose mark tells a style, and those right in neither."""
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
    if len(tones) != 1 or not (m := _SYLLABLE.fullmatch("".join(bare))):
        return word
    nucleus = next(n for n in ("qu_nucleus", "o_nucleus", "u_nucleus") if m[n])
    at = m.end(nucleus) - 1
    open_pair = not m["q"] and not m["coda"] and m[nucleus].lower() in ("a", "e", "y")
    if open_pair and style == "old":
        at = m.start(nucleus) - 1
    # Else the mark is on no vowel of glide and nucleus: nothing that slipped.
    if tones[0][0] not in range(m.start(nucleus) - 1, m.end(nucleus)):
        return word
    bare[at] = unicodedata.normalize("NFC", bare[at] + tones[0][1])
    return "".join(bare)
