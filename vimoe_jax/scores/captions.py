"""Caption scores: BLEU-1 to 4, ROUGE-L, CIDEr-D, by pycocoevalcap's Python scorers.

They mean nothing without the tokenisation: the same captions score .863 in CIDEr split into words
and .951 split into syllables. Words need a segmenter, `pip install pyvi` (or underthesea).
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import io
import re
from collections.abc import Callable, Sequence
from typing import Literal

from vimoe_jax.base import metrics
from vimoe_jax.base.errors import UserError
from vimoe_jax.scores.predictions import Prediction
from vimoe_jax.text.normalize import PLAIN, Profile

Tokenization = Literal["syllable", "word"]
TOKENIZATIONS: tuple[Tokenization, ...] = ("syllable", "word")
_PUNCTUATION = re.compile(r"[^\w\s]|_", re.UNICODE)


def tokenize(text: str, profile: Profile = PLAIN, tokenization: str = "syllable") -> str:
    """Tokens of a caption, joined by spaces, without punctuation; syllables of a word by `_`.

    Raises:
      UserError: the tokenisation is by words, and no segmenter is installed.
    """
    text = profile(text)
    if tokenization == "syllable":
        return " ".join(_PUNCTUATION.sub(" ", text).split())
    # Underscores of the text itself would look like the segmenter's.
    words = _segmenter()[1](" ".join(text.replace("_", " ").split()))
    tokens = (_PUNCTUATION.sub(" ", word.replace("_", " ")).split() for word in words)
    return " ".join("_".join(syllables) for syllables in tokens if syllables)


def describe(tokenization: str) -> str:
    """The tokenisation in words, with the segmenter's name and version.

    Raises:
      UserError: the tokenisation is by words, and no segmenter is installed.
    """
    if tokenization == "syllable":
        return "syllables, split at white space, punctuation dropped"
    return f"words, segmented by {_segmenter()[0]}, punctuation dropped"


@functools.cache
def _segmenter() -> tuple[str, Callable[[str], list[str]]]:
    """Name and function of the first segmenter installed; words have spaces or `_` inside."""
    from importlib.metadata import version

    def pyvi(text: str) -> list[str]:
        return importlib.import_module("pyvi.ViTokenizer").tokenize(text).split()

    def underthesea(text: str) -> list[str]:
        return importlib.import_module("underthesea").word_tokenize(text)

    for name, segment in (("pyvi", pyvi), ("underthesea", underthesea)):
        try:
            # Not every broken installation fails on import: a word shows that the model loads.
            segment("con mèo")
        except ImportError:
            continue
        return f"{name} {version(name)}", segment
    raise UserError(
        "config.eval.tokenization: 'word' needs a segmenter: install pyvi or underthesea"
    )


for _n in range(1, 5):
    metrics.define(
        f"caption/bleu_{_n}",
        f"BLEU-{_n}",
        f"Share of {'single syllables' if _n == 1 else f'runs of up to {_n} syllables'} found in a "
        "reference, less a penalty for brevity.",
    )
metrics.define("caption/rouge_l", "ROUGE-L", "F-score of the longest common subsequence.")
metrics.define(
    "caption/cider",
    "CIDEr-D",
    "Agreement with the references in n-grams that are rare among them; 10 at most. Papers print "
    "it as here, or × 100.",
    unit="",
    high=10,
)
metrics.define("caption/exact", "Exact captions", "Captions equal to one of the references.")
metrics.define(
    "caption/count", "Captions", "Captions scored.", unit=metrics.COUNT, better="neither"
)


def score(
    predictions: Sequence[Prediction],
    profile: Profile = PLAIN,
    tokenization: str = "syllable",
) -> dict[str, float]:
    """All scores of the captioning task; {} if there is no caption.

    `caption/bleu_1` to `bleu_4`, `caption/rouge_l`, `caption/cider` (CIDEr-D, 10 at best; document
    frequencies from this set's references, so left out for fewer than two pictures),
    `caption/exact` (equal to one of the references), `caption/count`.

    Raises:
      UserError: the tokenisation is by words, and no segmenter is installed.
    """
    cut = functools.partial(tokenize, profile=profile, tokenization=tokenization)
    rows, references = [], {}
    for p in predictions:
        # A reference of punctuation alone has no token, and breaks the scorers.
        texts = [t for t in map(cut, p.answers) if t] if p.task == "caption" else []
        if texts:
            references[len(rows)] = texts
            rows.append(p)
    if not rows:
        return {}
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge

    answers = {i: [cut(p.prediction)] for i, p in enumerate(rows)}
    with contextlib.redirect_stdout(io.StringIO()):  # the scorers print lengths
        bleu = Bleu(4).compute_score(references, answers, verbose=0)[0]
        scores = {f"caption/bleu_{n}": float(value) for n, value in enumerate(bleu, 1)}
        scores["caption/rouge_l"] = float(Rouge().compute_score(references, answers)[0])
        if len({p.record_index for p in rows}) > 1:
            scores["caption/cider"] = float(Cider().compute_score(references, answers)[0])
    right = sum(answers[i][0] in references[i] for i in answers)
    return {**scores, "caption/exact": right / len(rows), "caption/count": len(rows)}
