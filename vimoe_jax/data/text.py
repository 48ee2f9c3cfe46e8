"""Vietnamese text as every part of the project sees it."""

from __future__ import annotations

import unicodedata

# Zero-width characters and the byte-order mark: invisible, and different bytes for the same word.
# (U+200D stays inside emoji sequences in principle; no dataset here asks about those.)
_INVISIBLE = dict.fromkeys(map(ord, "\u200b\u200c\u200d\u2060\ufeff\u00ad"))


def normalize(text: str) -> str:
    """NFC, invisible characters removed, white space collapsed and stripped.

    NFC comes first of all: decomposed Vietnamese costs a tokenizer three times the tokens and
    compares unequal. Tone placement (hòa, hoà) is left as it is.
    """
    return " ".join(unicodedata.normalize("NFC", text).translate(_INVISIBLE).split())
