"""A run's rows: how they are cut, and the first ones of a split."""

from __future__ import annotations

from typing import Any

import jax

from vimoe_jax.config import Config
from vimoe_jax.data import pipeline
from vimoe_jax.data.batch import Batch
from vimoe_jax.datasets.records import Source
from vimoe_jax.run.workdir import Run


def picture_options(c: Config) -> dict[str, Any]:
    """How pictures are read and placed, in training and in decoding alike."""
    return dict(
        image_size=c.model.image_size,
        patches=c.model.num_patches,
        max_pictures=c.data.max_pictures,
        resize=c.data.resize,
    )


def batch_options(c: Config) -> dict[str, Any]:
    """How rows are cut, for training and for validation alike."""
    return dict(**picture_options(c), text_length=c.data.text_length, batch_size=c.train.batch_size)


def fixed_batches(run: Run, source: Source, count: int) -> list[Batch]:
    """The first batches of a source in a fixed order, at most one pass."""
    options = batch_options(run.config)
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
        return [b.for_step() for _, b in zip(range(count), batches, strict=False)]
    finally:
        batches.close()
