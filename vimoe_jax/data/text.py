"""Vietnamese text as every part of the project sees it."""

from __future__ import annotations

import unicodedata

# Control and format characters (zero-width spaces and joiners, the byte-order mark, direction
# marks, soft hyphens): invisible, and different bytes for the same word. White space stays, to be
# collapsed. Emoji sequences lose their joiners and become their parts.
_CLEAN: dict[int, str | None] = {
    c: None
    for c in (*range(0x20000), *range(0xE0000, 0xE0080))  # no others are assigned
    if unicodedata.category(chr(c)) in ("Cc", "Cf") and not chr(c).isspace()
}
# Half a surrogate pair (broken JSON escapes, undecodable bytes of a command line) has no UTF-8.
_CLEAN |= dict.fromkeys(range(0xD800, 0xE000), "\ufffd")


def normalize(text: str) -> str:
    """NFC, invisible characters removed, white space collapsed and stripped.

    Decomposed Vietnamese costs a tokenizer three times the tokens and compares unequal; an
    invisible character between a letter and its mark would keep them apart, so that those go
    first. Tone placement (hòa, hoà) is left as it is.
    """
    return " ".join(unicodedata.normalize("NFC", text.translate(_CLEAN)).split())
