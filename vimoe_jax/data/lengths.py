"""How long prompts and rows are, for choosing what a row may hold."""

from __future__ import annotations

import numpy as np

from vimoe_jax.data import prompts
from vimoe_jax.data.mixture import style_of
from vimoe_jax.datasets.records import QA, BadRecord, Source
from vimoe_jax.text.tokenizers import Tokenizer


def suggest_lengths(
    source: Source, tokenizer: Tokenizer, sample: int = 200
) -> dict[str, dict[str, int]]:
    """Tokens of prompts, segments and rows, for choosing text_length and prompt_length.

    Args:
      source: records.
      tokenizer: of questions and answers.
      sample: how many records to look at, evenly spread.

    Returns:
      p50, p90, p99 and p100 (the longest) of "prompt", "segment" (a prompt with the longest of its
      answers) and "row" (all segments of a picture).
    """
    lengths: dict[str, list[int]] = {"prompt": [], "segment": [], "row": []}
    for index in np.linspace(0, len(source) - 1, min(sample, len(source))).astype(int):
        try:
            record = source[int(index)]
            style = style_of(source, int(index))
            segments = [_longest(qa, tokenizer, style) for qa in record.qa]
        except BadRecord:
            continue
        lengths["segment"] += [len(s.tokens) for s in segments]
        lengths["prompt"] += [s.weights.count(0.0) + 1 for s in segments]
        lengths["row"].append(sum(len(s.tokens) for s in segments))
    return {
        name: {f"p{p}": int(np.percentile(v, p)) for p in (50, 90, 99, 100)}
        for name, v in lengths.items()
        if v
    }


def _longest(qa: QA, tokenizer: Tokenizer, style: str) -> prompts.Segment:
    explanations = len(qa.explanations) if prompts.suited(qa, style) == "explain" else 1
    every = (
        prompts.segment(qa, tokenizer, answer=i, style=style, explanation=j)
        for i in range(len(qa.answers))
        for j in range(explanations)
    )
    return max(every, key=lambda s: len(s.tokens))
