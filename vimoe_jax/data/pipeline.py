"""Grain pipelines: rows to this host's batches, and questions to evaluation batches.

Random access all the way: batch b is a function of (seed, b) alone, whatever the number of hosts,
workers and threads, so that a position in the data is one integer and resuming costs nothing.
"""

from __future__ import annotations

import dataclasses
import multiprocessing.connection
import multiprocessing.resource_tracker
import os
import signal
import threading
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from vimoe_jax.data.batch import Batch
from vimoe_jax.data.evaluation import EvalBatches, eval_batches
from vimoe_jax.data.lengths import suggest_lengths
from vimoe_jax.data.mixture import Mixture
from vimoe_jax.data.rows import RowMaker, describe
from vimoe_jax.datasets.records import Source
from vimoe_jax.text.tokenizers import Tokenizer

__all__ = [
    "EvalBatches",
    "TrainBatches",
    "continued",
    "describe",
    "eval_batches",
    "suggest_lengths",
    "train_batches",
]

# Rows until the data ends. Grain's own endless `repeat` overflows in batches of one row.
_FOREVER = 1 << 60

# Of this process, without workers: each builds a batch. Pillow decodes and resizes without the GIL;
# beyond some number they only wait for the rest of the work, which needs it.
NUM_THREADS = min(max(2, os.cpu_count() or 1), 16)


class TrainBatches:
    """An endless iterator over this host's part of each batch, that knows its position."""

    def __init__(self, iterator: Any, start: int, offset: int = 0):
        self._iterator: Any = iterator
        self._consumed, self._offset = start, offset
        self._started = False

    def __iter__(self) -> TrainBatches:
        return self

    def __next__(self) -> Batch:
        if self._started:
            batch = next(self._iterator)
        else:
            # Worker processes start here. They inherit the mask, so that a Ctrl-C meant for the
            # trainer never ends them half-way through their start; this process gets it later.
            multiprocessing.resource_tracker.ensure_running()  # its own start resets the mask
            before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM))
            try:
                batch = next(self._iterator)
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, before)
            self._started = True
        self._consumed += 1
        return Batch(**batch)

    def state(self) -> dict[str, int]:
        """How many batches were consumed, over all resumptions: what `start` continues from.

        Rows before batch 0 are told as `offset`, where there are any.
        """
        offset = {"offset": self._offset} if self._offset else {}
        return {"batches": self._consumed} | offset

    def close(self) -> None:
        """Stops threads and worker processes."""
        if hasattr(self._iterator, "close"):
            self._iterator.close()
        # Freed now: at the interpreter's end Grain's destructors complain.
        self._iterator = iter(())


def continued(position: Mapping[str, int], batch_size: int) -> dict[str, int]:
    """A saved position as `train_batches`' start and offset for batches of this size.

    Args:
      position: `batches`, and where they are told `offset` and the `batch_size` of those batches.
      batch_size: from here on. Of another size, they begin at the next row that was in none.
    """
    start, offset = position["batches"], position.get("offset", 0)
    before = position.get("batch_size", batch_size)
    if before != batch_size:
        start, offset = 0, offset + start * before
    return {"start": start, "offset": offset}


def train_batches(
    source: Source,
    tokenizer: Tokenizer,
    *,
    image_size: int,
    text_length: int,
    patches: int,
    batch_size: int,
    seed: int,
    start: int = 0,
    offset: int = 0,
    process_index: int = 0,
    process_count: int = 1,
    workers: int = 0,
    max_pictures: int = 1,
    resize: str = "squash",
    max_questions: int = 0,
    vary_prompts: bool = False,
    cache_images: bool = False,
) -> TrainBatches:
    """Shuffled rows without end, in batches of b = batch_size / process_count rows a host.

    Each epoch has its own order and its own draw of questions, answers and wordings. The parts of a
    weighted mixture take turns at rates in proportion to their weights (each within a hundredth of
    itself), each in epochs of its own.

    Args:
      source: records.
      tokenizer: of questions and answers.
      image_size: H = W, pixels.
      text_length: T, text tokens per row.
      patches: P, places of a picture.
      batch_size: B, rows of a global batch; host h gets rows h·b to (h+1)·b - 1 of each.
      seed: decides everything.
      start: batches already consumed.
      offset: rows that were consumed before batch 0, in batches of another size.
      process_index: this host.
      process_count: hosts.
      workers: processes that build batches; 0 uses threads of this process.
      max_pictures: I, pictures per row at most.
      resize: how a picture becomes square.
      max_questions: segments a row at most; 0 for as many as fit.
      vary_prompts: draw the prompt's wording.
      cache_images: keep decoded pictures in memory.

    Returns:
      An endless iterator over `Batch`es of b rows.
    """
    import grain

    if batch_size % process_count:
        raise ValueError(f"batch_size {batch_size} does not divide by {process_count} hosts")
    if not len(source):
        raise ValueError("the source has no records")
    rows = RowMaker(
        source, tokenizer, image_size, text_length, patches, max_pictures, resize, max_questions,
        vary_prompts, cache_images,
    )  # fmt: skip
    dataset = (
        _visits(source, seed)
        .slice(slice(offset, None))
        .batch(batch_size, batch_fn=list)
        .map(_HostBatch(rows, process_index, process_count))
        .slice(slice(start, None))
    )
    if workers:
        _mark_flags_parsed()
        dataset = dataset.to_iter_dataset(grain.ReadOptions(1, 2)).mp_prefetch(
            grain.MultiprocessingOptions(workers, per_worker_buffer_size=2),
            worker_init_fn=_start_worker,
        )
    else:
        dataset = dataset.to_iter_dataset(grain.ReadOptions(NUM_THREADS, NUM_THREADS + 2))
    return TrainBatches(iter(dataset), start, offset)


def _mark_flags_parsed() -> None:
    """Grain's worker pool reads absl flags, which only absl's own `app.run` would parse."""
    from absl import flags

    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()


def _visits(source: Source, seed: int) -> Any:
    """A `grain.MapDataset` of (record's index, seed of this visit to it), without end."""
    import grain

    if not (isinstance(source, Mixture) and source.weighted and len(source.components) > 1):
        return _epochs(0, len(source), seed, _FOREVER)
    # By its name, so that a part's order is its own whatever it is mixed with.
    names = (zlib.crc32(part.label.encode()) for part in source.components)
    seeds = (int(np.random.SeedSequence([seed, name]).generate_state(1)[0]) for name in names)
    length = _FOREVER // len(source.components)
    starts = source.starts
    parts = [
        _epochs(start, stop - start, own, length)
        for start, stop, own in zip(starts, starts[1:], seeds, strict=False)
    ]
    return grain.MapDataset.mix(parts, weights=[c.weight for c in source.components])


def _epochs(start: int, count: int, seed: int, length: int) -> Any:
    """Visits to `count` records from `start` on, in an order of its own each epoch."""
    import grain

    return (
        grain.MapDataset.range(count)
        .seed(seed)
        .shuffle()
        .repeat(length // count)
        .random_map(_Visit(start))
    )


@dataclasses.dataclass(frozen=True)
class _Visit:
    """A place in a part to the record's index and the seed of this visit."""

    start: int

    def __call__(self, place: int, rng: np.random.Generator) -> tuple[int, int]:
        return self.start + place, int(rng.integers(1 << 32))


@dataclasses.dataclass(frozen=True)
class _HostBatch:
    """A global batch's (index, seed) pairs to this host's rows."""

    rows: RowMaker
    process_index: int
    process_count: int

    def __call__(self, pairs: list[tuple[int, int]]) -> dict[str, np.ndarray]:
        share = len(pairs) // self.process_count
        mine = pairs[self.process_index * share : (self.process_index + 1) * share]
        rows = [self.rows(index, seed) for index, seed in mine]
        return {name: np.stack([row[name] for row in rows]) for name in rows[0]}


def _start_worker(*_: int) -> None:
    """Leaves signals to the parent, which saves first, and dies when the parent is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def watch() -> None:
        multiprocessing.connection.wait([parent.sentinel])  # even when it was killed
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
