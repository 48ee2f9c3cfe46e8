"""Questions to evaluation batches."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Collection, Iterator

import numpy as np

from vimoe_jax.data import prompts
from vimoe_jax.data.batch import PICTURE, Prompts
from vimoe_jax.data.mixture import style_of
from vimoe_jax.data.rows import decode_all, stack_pictures
from vimoe_jax.datasets.records import QA, BadRecord, Record, Source
from vimoe_jax.text.tokenizers import Tokenizer


@dataclasses.dataclass
class EvalBatches:
    """Every question of a source once, in order, whatever the number of hosts.

    Attributes:
      skipped: a message for each bad record met so far.
      cut: prompts met so far that were longer than `prompt_length`.
    """

    source: Source
    tokenizer: Tokenizer
    image_size: int
    prompt_length: int
    patches: int
    max_pictures: int
    batch_size: int
    resize: str
    limit: int
    tasks: Collection[str] | None
    process_index: int
    process_count: int
    skipped: list[str] = dataclasses.field(default_factory=list)
    cut: int = 0
    _last: tuple[Record | None, list[np.ndarray] | None] = (None, None)

    def __iter__(self) -> Iterator[tuple[Prompts, list[tuple[int, QA]]]]:
        self.skipped.clear()
        self.cut = 0
        rows: list[tuple[Record, list[int], int, QA]] = []
        for row in self._rows():
            rows.append(row)
            if len(rows) == self.batch_size:
                yield self._batch(rows)
                rows = []
        if rows:
            yield self._batch(rows)
        if self.cut:
            print(
                f"warning: {self.cut} prompts lost their beginning to "
                f"config.data.prompt_length = {self.prompt_length}",
                file=sys.stderr,
            )

    def _rows(self) -> Iterator[tuple[Record, list[int], int, QA]]:
        for index in range(min(len(self.source), self.limit or len(self.source))):
            try:
                record = self.source[index]
                asked = [qa for qa in record.qa if self.tasks is None or qa.task in self.tasks]
                if not asked:
                    continue
                style = style_of(self.source, index)
                asks = (prompts.prompt_of(qa, style=style) for qa in asked)
                ids = [self.tokenizer.encode(text) for text in asks]
            except BadRecord as e:
                self.skipped.append(str(e))
                continue
            for qa, prompt in zip(asked, ids, strict=True):
                self.cut += len(prompt) > self.prompt_length
                # The end of a prompt asks for the answer, so that a long one loses its beginning.
                yield record, prompt[-self.prompt_length :], index, qa

    def _batch(self, rows: list) -> tuple[Prompts, list[tuple[int, QA]]]:
        b, size, most = self.batch_size // self.process_count, self.image_size, self.max_pictures
        start, places = self.process_index * b, most * self.patches + self.prompt_length
        batch = Prompts(
            pictures=np.zeros((b, most, size, size, 3), np.uint8),
            tokens=np.full((b, places), self.tokenizer.pad_id, np.int32),
            length=np.zeros((b,), np.int32),
            valid=np.zeros((b,), bool),
        )
        for i, (record, prompt, _, _) in enumerate(rows[start : start + b]):
            pixels = self._pixels(record)
            if pixels is None:
                continue
            shared = self.patches * len(pixels)
            batch.pictures[i] = stack_pictures(pixels, most, size)
            batch.tokens[i, :shared] = PICTURE
            batch.tokens[i, shared : shared + len(prompt)] = prompt
            batch.length[i] = shared + len(prompt)
            batch.valid[i] = True
        return batch, [(index, qa) for _, _, index, qa in rows]

    def _pixels(self, record: Record) -> list[np.ndarray] | None:
        """Its pictures, None if one is bad; kept, for a record's questions follow each other."""
        if self._last[0] is not record:
            try:
                pixels = decode_all(record, self.image_size, self.resize, self.max_pictures)
            except BadRecord as e:
                pixels = None
                self.skipped.append(str(e))
            self._last = record, pixels
        return self._last[1]


def eval_batches(
    source: Source,
    tokenizer: Tokenizer,
    *,
    image_size: int,
    prompt_length: int,
    patches: int,
    batch_size: int,
    max_pictures: int = 1,
    resize: str = "squash",
    limit: int = 0,
    tasks: Collection[str] | None = None,
    process_index: int = 0,
    process_count: int = 1,
) -> EvalBatches:
    """Every question with its picture in a row of its own; the last batch is padded.

    Args:
      source: records.
      tokenizer: of prompts.
      image_size: H = W, pixels.
      prompt_length: tokens that a prompt may have.
      patches: P, places of a picture.
      batch_size: B, rows of a global batch; host h gets rows h·b to (h+1)·b - 1 of each.
      max_pictures: I, pictures per row at most.
      resize: how a picture becomes square.
      limit: only the first so many records; 0 for all.
      tasks: only questions of these tasks; None for all.
      process_index: this host.
      process_count: hosts.

    Returns:
      An iterable of (`Prompts` of b rows, items): items holds (record index, QA) of the global
      batch's rows.
    """
    return EvalBatches(
        source, tokenizer, image_size, prompt_length, patches, max_pictures, batch_size, resize,
        limit, tasks, process_index, process_count,
    )  # fmt: skip
