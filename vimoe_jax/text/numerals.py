"""Vietnamese cardinal numbers, 0 … 999,999,999: figures to words and words to figures.

hai mươi mốt, mười lăm, một trăm linh năm, một nghìn không trăm linh một. Understood beside these:
lẻ for linh, ngàn for nghìn, tư for bốn after mươi, nhăm for lăm, bẩy for bảy.

Many number words are other words too: năm is 5 and year, một is 1 and "a", không is 0 and "no". So
a single word counts as a number only where it is the whole text (không never does), and within a
text only what can be nothing else is touched:

- "words": figures that stand alone (2 con mèo: hai con mèo), and variants within numbers of two
  syllables or more (hai mươi tư: hai mươi bốn).
- "digits": numbers of two syllables or more (hai mươi mốt con: 21 con).

Left alone: short forms (một trăm hai, hai nghìn năm), halves (hai trăm rưỡi), numbers side by side
(hai ba mươi); figures with a leading zero, or touching a letter, sign, unit or decimal comma.
A full stop before three figures separates thousands, as in Vietnamese: 25.000.
"""

from __future__ import annotations

import re
from typing import Literal

Style = Literal["keep", "words", "digits"]
STYLES: tuple[Style, ...] = ("keep", "words", "digits")
LARGEST = 999_999_999

_DIGITS = ("không", "một", "hai", "ba", "bốn", "năm", "sáu", "bảy", "tám", "chín")
_VALUES = {w: i for i, w in enumerate(_DIGITS)} | {"bẩy": 7, "mốt": 1, "tư": 4, "lăm": 5, "nhăm": 5}
_UNITS = {"mươi": 10, "trăm": 100, "nghìn": 1000, "ngàn": 1000, "triệu": 1_000_000}

_DIGIT = "(?:một|hai|ba|bốn|năm|sáu|bảy|bẩy|tám|chín)"
# Never năm: mười năm and hai mươi năm are ten and twenty years.
_AFTER_TEN = "(?: (?:một|hai|ba|bốn|sáu|bảy|bẩy|tám|chín|lăm|nhăm))?"
_AFTER_TENS = "(?: (?:mốt|một|hai|ba|tư|bốn|sáu|bảy|bẩy|tám|chín|lăm|nhăm))?"
_TENS = f"(?:mười{_AFTER_TEN}|{_DIGIT} mươi{_AFTER_TENS})"
_FEW = f"(?:(?:linh|lẻ) (?:{_DIGIT}|tư))"
_HUNDREDS = f"(?:(?:không|{_DIGIT}) trăm(?: {_TENS}| {_FEW})?)"
_GROUP = f"(?:{_HUNDREDS}|{_TENS}|{_DIGIT})"
_LATER = f"(?: (?:{_HUNDREDS}|{_TENS}|{_FEW}))"  # of what began with a higher group
_THOUSANDS = f"(?:(?:{_GROUP}|không) (?:nghìn|ngàn))"
_WORDS = f"(?:{_GROUP} triệu(?: {_THOUSANDS})?{_LATER}?|{_GROUP} (?:nghìn|ngàn){_LATER}?|{_GROUP})"
_FIGURES = r"(?:\d{1,3}(?:\.\d{3})+|\d{1,9})"
_MARKS = "\u0300-\u036f\ufe0f\u20e3"  # the last two make a keycap of a figure
_NUMBER = re.compile(
    rf"(?<![\w.,:/+−–%$€#@'-]){_WORDS}(?![\w{_MARKS}])"
    rf"|(?<![\w.,:/+−–%$€#@'-])(?P<figures>{_FIGURES})(?![\w%°/:+–€₫{_MARKS}-]|[.,]\d)",
    re.IGNORECASE,
)
_WORD_BEFORE, _WORD_AFTER = re.compile(r"(\w+) $"), re.compile(r" (\w+)")
_NEIGHBOURS = {*_VALUES, *_UNITS, "mười", "linh", "lẻ", "rưỡi", "rưởi", "chục", "vạn", "tỷ", "tỉ"}


def read(n: int) -> str:
    """A number in words: 105 is một trăm linh năm.

    Raises:
      ValueError: n is negative, or more than `LARGEST`.
    """
    if not 0 <= n <= LARGEST:
        raise ValueError(f"{n} is not in 0 … {LARGEST}")
    if n == 0:
        return _DIGITS[0]
    words: list[str] = []
    for unit, name in ((1_000_000, "triệu"), (1000, "nghìn"), (1, "")):
        group = n // unit % 1000
        if group:
            words += [*_read_group(group, full=bool(words)), name]
    return " ".join(words).strip()


def _read_group(n: int, *, full: bool) -> list[str]:
    """1 … 999; `full` says the hundreds even where there are none."""
    hundreds, tens, ones = n // 100, n // 10 % 10, n % 10
    words = [_DIGITS[hundreds], "trăm"] if hundreds or full else []
    if tens > 1:
        words += [_DIGITS[tens], "mươi"]
    elif tens:
        words.append("mười")
    elif ones and words:
        words.append("linh")
    if ones:
        words.append({(1, True): "mốt", (5, True): "lăm"}.get((ones, tens > 1), _DIGITS[ones]))
    if ones == 5 and tens == 1:
        words[-1] = "lăm"
    return words


def value(words: str) -> int | None:
    """What a number in words is worth; None if the text is not one number."""
    match = _NUMBER.fullmatch(words)
    return None if not match or match["figures"] else _value(words)


def _value(words: str) -> int:
    total = group = digit = 0
    for word in words.lower().split():
        if word in _VALUES:
            digit = _VALUES[word]
        elif word == "mười":
            group += 10
        elif (unit := _UNITS.get(word, 0)) >= 1000:
            total, group, digit = total + (group + digit) * unit, 0, 0
        elif unit:
            group, digit = group + digit * unit, 0
    return total + group + digit


def rewrite(text: str, style: Style) -> str:
    """The text with its numbers in one form, by the rules above.

    Args:
      text: normalised (`vimoe_jax.text.normalize.normalize`), in any case.
      style: "words", "digits", or "keep" to change nothing.
    """
    if style == "keep":
        return text
    return _NUMBER.sub(lambda m: _rewritten(m, style), text)


def _rewritten(m: re.Match[str], style: Style) -> str:
    found, figures = m[0], m["figures"]
    alone = found == m.string
    if not alone and _has_neighbour(m):
        return found
    if figures:
        number = int(figures.replace(".", ""))
        if number > LARGEST or (len(figures) > 1 and int(figures[0]) == 0):
            return found
    elif alone or " " in found:
        number = _value(found)
    else:
        return found
    text = read(number) if style == "words" else str(number)
    return found if found.lower() == text else text


def _has_neighbour(m: re.Match[str]) -> bool:
    """Whether the word before or after belongs to a number too, so that neither is sure."""
    beside = _WORD_BEFORE.search(m.string[: m.start()]), _WORD_AFTER.match(m.string, m.end())
    last, following = (w[1].lower() if w else "" for w in beside)
    if last == "năm" and m["figures"]:  # năm 2000: the year
        last = ""
    said_short = m[0].lower().endswith(("trăm", "nghìn", "ngàn", "triệu"))
    if following == "năm" and not said_short:  # 20 năm, hai mươi năm: years
        following = ""
    return any(w in _NEIGHBOURS or w.isdecimal() for w in (last, following))
