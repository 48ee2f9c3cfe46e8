"""Scores."""

from __future__ import annotations

from vimoe_jax.base.schema import at_least, checked, field, one_of
from vimoe_jax.text.normalize import PROFILES


@checked
class Eval:
    """Scores: the validation loss while training, generated answers at the end."""

    every: int = field(200, "Steps between validation losses; 0 for never.", at_least(0))
    val_batches: int = field(8, "Batches a validation loss is taken over.", at_least(1))
    at_end: bool = field(True, "Generate answers for the test splits after training.")
    batch_size: int = field(64, "Questions decoded at once.", at_least(1))
    max_new_tokens: int = field(32, "Tokens an answer or caption may have.", at_least(1))
    limit: int = field(0, "Pictures of a split that are scored; 0 for all.", at_least(0))
    thumbnails: int = field(24, "Pictures kept for the report.", at_least(0))
    profile: str = field(
        "auto",
        "How answers and references are rewritten before they are compared (docs/text.md); 'auto' "
        "takes the dataset's own.",
        one_of("auto", *PROFILES),
    )
    tokenization: str = field(
        "syllable",
        "Of captions for their scores; 'word' needs pyvi or underthesea.",
        one_of("syllable", "word"),
    )
