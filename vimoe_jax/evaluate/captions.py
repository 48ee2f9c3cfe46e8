"""Caption scores: BLEU-1 to 4, ROUGE-L, CIDEr-D, by pycocoevalcap's Python scorers."""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Sequence

from vimoe_jax.data.text import normalize
from vimoe_jax.evaluate.predictions import Prediction

# Scores mean nothing without it: the same captions score differently word-segmented.
TOKENIZATION = "syllables: NFC, lower case, punctuation dropped, split at white space"
_PUNCTUATION = re.compile(r"[^\w\s]|_", re.UNICODE)


def tokenize(text: str) -> str:
    """Syllables of a caption, joined by spaces (see `TOKENIZATION`)."""
    return " ".join(_PUNCTUATION.sub(" ", normalize(text).lower()).split())


def score(predictions: Sequence[Prediction]) -> dict[str, float]:
    """All scores of the captioning task; {} if there is no caption.

    `caption/bleu_1` to `bleu_4`, `caption/rouge_l`, `caption/cider` (CIDEr-D, 10 at best; document
    frequencies from this set's references, so left out for fewer than two pictures),
    `caption/exact` (equal to one of the references), `caption/count`.
    """
    rows, references = [], {}
    for p in predictions:
        # A reference of punctuation alone has no syllable, and breaks the scorers.
        texts = [t for t in map(tokenize, p.answers) if t] if p.task == "caption" else []
        if texts:
            references[len(rows)] = texts
            rows.append(p)
    if not rows:
        return {}
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge

    answers = {i: [tokenize(p.prediction)] for i, p in enumerate(rows)}
    with contextlib.redirect_stdout(io.StringIO()):  # the scorers print lengths
        bleu = Bleu(4).compute_score(references, answers, verbose=0)[0]
        metrics = {f"caption/bleu_{n}": float(value) for n, value in enumerate(bleu, 1)}
        metrics["caption/rouge_l"] = float(Rouge().compute_score(references, answers)[0])
        if len({p.record_index for p in rows}) > 1:
            metrics["caption/cider"] = float(Cider().compute_score(references, answers)[0])
    right = sum(answers[i][0] in references[i] for i in answers)
    return {**metrics, "caption/exact": right / len(rows), "caption/count": len(rows)}
