"""Grain pipelines: rows to this host's batches, and questions to evaluation batches.

Random access all the way: batch b is a function of (seed, b) alone, whatever the number of hosts,
workers and threads, so that a position in the data is one integer and resuming costs nothing.
"""

from __future__ import annotations

import dataclasses
import os
import signal
import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np

from vimoe_jax.data import images, prompts
from vimoe_jax.data.records import QA, BadRecord, Source
from vimoe_jax.data.rows import RowMaker, describe
from vimoe_jax.data.tokenizer import Tokenizer

__all__ = ["EvalBatches", "TrainBatches", "describe", "eval_batches", "train_batches"]

Batch = dict[str, np.ndarray]


class TrainBatches:
    """An endless iterator over this host's part of each batch, that knows its position."""

    def __init__(self, iterator: Any, start: int):
        self._iterator = iterator
        self._consumed = start

    def __iter__(self) -> TrainBatches:
        return self

    def __next__(self) -> Batch:
        batch = next(self._iterator)
        self._consumed += 1
        return batch

    def state(self) -> dict[str, int]:
        """How many batches were consumed, over all resumptions: what `start` continues from."""
        return {"batches": self._consumed}

    def close(self) -> None:
        """Stops threads and worker processes."""
        if hasattr(self._iterator, "close"):
            self._iterator.close()


def train_batches(
    source: Source,
    tokenizer: Tokenizer,
    *,
    image_size: int,
    text_length: int,
    batch_size: int,
    seed: int,
    start: int = 0,
    process_index: int = 0,
    process_count: int = 1,
    workers: int = 0,
    resize: str = "squash",
    max_questions: int = 0,
    vary_prompts: bool = False,
    cache_images: bool = False,
) -> TrainBatches:
    """Shuffled rows without end, in batches of b = batch_size / process_count rows a host.

    Each epoch has its own order and its own draw of questions, answers and wordings.

    Args:
      source: records.
      tokenizer: of questions and answers.
      image_size: H = W, pixels.
      text_length: S, text tokens a row.
      batch_size: B, rows of a global batch; host h gets rows h·b to (h+1)·b - 1 of each.
      seed: decides everything.
      start: batches already consumed.
      process_index: this host.
      process_count: hosts.
      workers: processes that build batches; 0 uses threads of this process.
      resize: how a picture becomes square.
      max_questions: segments a row at most; 0 for as many as fit.
      vary_prompts: draw the prompt's wording.
      cache_images: keep decoded pictures in memory.

    Returns:
      Batches of image (b, H, W, 3) uint8; tokens, targets, segments (0 for padding), positions
      (b, S) int32; weights (b, S) float32, 1 where the target is an answer's; record, truncated
      (b,) int32; skipped (b,) bool.
    """
    import grain

    rows = RowMaker(
        source, tokenizer, image_size, text_length, resize, max_questions, vary_prompts,
        cache_images,
    )  # fmt: skip
    dataset = (
        grain.MapDataset.range(len(source))
        .seed(seed)
        .shuffle()
        .repeat()
        .random_map(_with_seed)
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
        dataset = dataset.to_iter_dataset(grain.ReadOptions(num_threads=2, prefetch_buffer_size=4))
    return TrainBatches(iter(dataset), start)


def _mark_flags_parsed() -> None:
    """Grain's worker pool reads absl flags, which only absl's own `app.run` would parse."""
    from absl import flags

    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()


def _with_seed(index: int, rng: np.random.Generator) -> tuple[int, int]:
    """A record's index and the seed of this visit to it."""
    return index, int(rng.integers(1 << 32))


@dataclasses.dataclass(frozen=True)
class _HostBatch:
    """A global batch's (index, seed) pairs to this host's rows."""

    rows: RowMaker
    process_index: int
    process_count: int

    def __call__(self, pairs: list[tuple[int, int]]) -> Batch:
        share = len(pairs) // self.process_count
        mine = pairs[self.process_index * share : (self.process_index + 1) * share]
        rows = [self.rows(index, seed) for index, seed in mine]
        return {name: np.stack([row[name] for row in rows]) for name in rows[0]}


def _start_worker(*_: int) -> None:
    """Leaves signals to the parent, which saves first, and dies when the parent is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


@dataclasses.dataclass
class EvalBatches:
    """Every question of a source once, in order; `skipped` grows while iterating."""

    source: Source
    tokenizer: Tokenizer
    image_size: int
    prompt_length: int
    batch_size: int
    resize: str
    limit: int
    process_index: int
    process_count: int
    skipped: list[str] = dataclasses.field(default_factory=list)

    def __iter__(self) -> Iterator[tuple[Batch, list[tuple[int, QA]]]]:
        rows: list[tuple[np.ndarray, list[int], int, QA]] = []
        for row in self._rows():
            rows.append(row)
            if len(rows) == self.batch_size:
                yield self._batch(rows)
                rows = []
        if rows:
            yield self._batch(rows)

    def _rows(self) -> Iterator[tuple[np.ndarray, list[int], int, QA]]:
        count = min(len(self.source), self.limit or len(self.source))
        for index in range(self.process_index, count, self.process_count):
            try:
                record = self.source[index]
                pixels = images.decode(record.image, self.image_size, self.resize, name=record.id)
                ids = [
                    self.tokenizer.encode(prompts.prompt(qa.task, qa.question)) for qa in record.qa
                ]
            except BadRecord as e:
                self.skipped.append(str(e))
                continue
            for qa, prompt in zip(record.qa, ids, strict=True):
                if len(prompt) > self.prompt_length:
                    self.skipped.append(
                        f"{record.id}: {qa.id}: a prompt of {len(prompt)} tokens was cut to "
                        f"config.data.prompt_length = {self.prompt_length}"
                    )
                # The end of a prompt asks for the answer, so that a long one loses its beginning.
                yield pixels, prompt[-self.prompt_length :], index, qa

    def _batch(self, rows: list) -> tuple[Batch, list[tuple[int, QA]]]:
        b, size, length = self.batch_size, self.image_size, self.prompt_length
        batch = {
            "image": np.zeros((b, size, size, 3), np.uint8),
            "tokens": np.full((b, length), self.tokenizer.pad_id, np.int32),
            "length": np.zeros((b,), np.int32),
            "valid": np.zeros((b,), bool),
        }
        for i, (pixels, prompt, _, _) in enumerate(rows):
            batch["image"][i] = pixels
            batch["tokens"][i, : len(prompt)] = prompt
            batch["length"][i] = len(prompt)
            batch["valid"][i] = True
        return batch, [(index, qa) for _, _, index, qa in rows]


def eval_batches(
    source: Source,
    tokenizer: Tokenizer,
    *,
    image_size: int,
    prompt_length: int,
    batch_size: int,
    resize: str = "squash",
    limit: int = 0,
    process_index: int = 0,
    process_count: int = 1,
) -> EvalBatches:
    """Every question with its picture in a row of its own; the last batch is padded.

    Args:
      source: records.
      tokenizer: of prompts.
      image_size: H = W, pixels.
      prompt_length: P tokens a prompt may have.
      batch_size: b, rows a batch.
      resize: how a picture becomes square.
      limit: only the first so many records; 0 for all.
      process_index: this host takes every `process_count`-th record from here.
      process_count: hosts.

    Returns:
      An iterable of (batch, items): image (b, H, W, 3) uint8, tokens (b, P) int32 padded on the
      right, length (b,) int32, valid (b,) bool; items holds (record index, QA) of each valid row.
    """
    return EvalBatches(
        source, tokenizer, image_size, prompt_length, batch_size, resize, limit, process_index,
        process_count,
    )  # fmt: skip


def length_percentiles(
    source: Source, tokenizer: Tokenizer, count: int = 200
) -> dict[str, dict[str, int]]:
    """Tokens of a segment, of a prompt, and of all segments of a picture: for choosing lengths."""
    lengths: dict[str, list[int]] = {"segment": [], "prompt": [], "picture": []}
    for index in np.linspace(0, len(source) - 1, min(count, len(source))).astype(int):
        try:
            record = source[int(index)]
        except BadRecord:
            continue
        segments = [prompts.segment(qa, tokenizer) for qa in record.qa]
        lengths["segment"] += [len(s.tokens) for s in segments]
        lengths["prompt"] += [s.weights.count(0.0) + 1 for s in segments]
        lengths["picture"].append(sum(len(s.tokens) for s in segments))
    return {
        name: {f"p{p}": int(np.percentile(v, p)) for p in (50, 90, 99, 100)}
        for name, v in lengths.items()
        if v
    }
