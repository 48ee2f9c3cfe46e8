"""Vietnamese text in the form that every room uses, and the profiles that scores use."""

from __future__ import annotations

import dataclasses
import functools
import re
import string
import sys
import unicodedata
from typing import Literal, cast

from vimoe_jax.text import numerals, tones

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


Punctuation = Literal["keep", "stop", "strip"]
PUNCTUATION: tuple[Punctuation, ...] = ("keep", "stop", "strip")
_FINAL_STOP = re.compile(r"(?<![\s.])\s*\.$")


@functools.cache
def _stripped() -> re.Pattern[str]:
    """Punctuation of all scripts and ASCII's symbols, but not what joins figures (2.5, 10:30)."""
    points = {
        chr(c) for c in range(sys.maxunicode + 1) if unicodedata.category(chr(c))[0] == "P"
    } | set(string.punctuation)
    joints = ".,:/-–"
    signs, joining = (f"[{re.escape(''.join(sorted(s)))}]" for s in (points - set(joints), joints))
    return re.compile(rf"{signs}|(?<!\d){joining}|{joining}(?!\d)")


@dataclasses.dataclass(frozen=True)
class Profile:
    """How a text is rewritten before it is compared: `profile(text)`.

    Rewriting twice is rewriting once, and what `normalize` makes equal stays equal.

    Attributes:
      tone: where tone marks stand: "old" (hòa), "new" (hoà), or "keep".
      numbers: "words" (hai mươi mốt), "digits" (21), or "keep"; which ones,
        `vimoe_jax.text.numerals` says.
      punctuation: "stop" drops one full stop at the end (an ellipsis stays), "strip" makes all
        punctuation white space except within figures (2.5), "keep" keeps it.
      lower: lower case.
    """

    # Texts of a user: checked below, not by their types.
    tone: str = "keep"
    numbers: str = "keep"
    punctuation: str = "keep"
    lower: bool = False

    def __post_init__(self):
        choices = {"tone": tones.STYLES, "numbers": numerals.STYLES, "punctuation": PUNCTUATION}
        for name, known in choices.items():
            if (given := getattr(self, name)) not in known:
                raise ValueError(f"{name}: must be one of {', '.join(known)}, not {given!r}")

    def __call__(self, text: str) -> str:
        """The rewritten text; cached, for a reference is compared many times."""
        return _apply(self, text)

    def __str__(self) -> str:
        """In words, for a score's label."""
        parts = ["NFC"]
        if self.lower:
            parts.append("lower case")
        parts += {"stop": ["final full stop dropped"], "strip": ["punctuation dropped"]}.get(
            self.punctuation, []
        )
        if self.tone != "keep":
            parts.append(f"tone marks in the {self.tone} place")
        if self.numbers != "keep":
            parts.append(f"numbers as {self.numbers}")
        return ", ".join(parts)


@functools.lru_cache(maxsize=1 << 16)
def _apply(profile: Profile, text: str) -> str:
    text = normalize(text)
    if profile.lower:
        text = normalize(text.lower())
    # Before tones and numbers, which look at what stands beside a word.
    if profile.punctuation == "strip":
        text = normalize(_stripped().sub(" ", text))
    elif profile.punctuation == "stop":
        text = _FINAL_STOP.sub("", text)
    placed = tones.place(text, cast(tones.Style, profile.tone))
    return numerals.rewrite(placed, cast(numerals.Style, profile.numbers))


PLAIN = Profile(punctuation="stop", lower=True)
# By name. The style of tone marks decides nothing where both sides are rewritten; each family takes
# the one that most of its texts have, so that what is printed looks as published.
PROFILES: dict[str, Profile] = {
    # What most papers do, and what published figures are comparable with.
    "plain": PLAIN,
    # Answers of one or two words out of a few hundred (ViVQA, ViVQA-X, ViCLEVR): "2" and "hai" are
    # one class.
    "short": Profile(tone="old", numbers="words", punctuation="stop", lower=True),
    # Free answers in sentences (OpenViVQA, EVJVQA): commas and quotation marks are the annotator's
    # habit. Words, since within a sentence only figures are sure to be numerals.
    "open": Profile(tone="new", numbers="words", punctuation="strip", lower=True),
    # Text read off a picture (ViOCRVQA, ViTextVQA): 1984 on a cover is figures, a comma was
    # printed; how the annotator's keyboard placed the tone mark says nothing about reading.
    "ocr": Profile(tone="new", punctuation="stop", lower=True),
    # Captions (UIT-ViIC, KTVIC, XM3600): metrics split at white space, and drop punctuation anyway.
    # Numbers stay, since an n-gram metric counts their syllables.
    "caption": Profile(tone="new", punctuation="strip", lower=True),
}

_PLACEHOLDERS = {"your answer"}


def is_placeholder(answer: str) -> bool:
    """Whether an answer is what stands in a test file whose answers were not published."""
    return PLAIN(answer) in _PLACEHOLDERS
