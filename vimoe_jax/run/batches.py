"""A run's rows: how they are cut, and the first ones of a split."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from vimoe_jax.data import pipeline
from vimoe_jax.data.batch import STEP_KEYS
from vimoe_jax.run.workdir import Run


def batch_options(run: Run) -> dict[str, Any]:
    """How rows are cut, for training and for validation alike."""
    c = run.config
    return dict(
        image_size=c.model.image_size,
        text_length=c.data.text_length,
        batch_size=c.train.batch_size,
        resize=c.data.resize,
    )


def fixed_batches(run: Run, source: Any, count: int) -> list[dict[str, np.ndarray]]:
    """The first batches of a source in a fixed order, at most one pass."""
    options = batch_options(run)
    count = min(count, -(-len(source) // options["batch_size"]))
    batches = pipeline.train_batches(
        source,
        run.tokenizer,
        **options,
        seed=0,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )
    try:
        return [{k: b[k] for k in STEP_KEYS} for _, b in zip(range(count), batches, strict=False)]
    finally:
        batches.close()
