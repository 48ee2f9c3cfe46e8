"""Records to rows: the pictures of a record and as many of its questions as fit, side by side.

The pictures come first. Each question is a *segment* that sees the pictures and itself only, so
that a row gives the loss its questions would give in rows of their own, for the price of one
encoding.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from vimoe_jax.data import prompts
from vimoe_jax.data.batch import PICTURE, SHARED
from vimoe_jax.data.mixture import Mixture, style_of
from vimoe_jax.datasets import images
from vimoe_jax.datasets.records import QA, BadRecord, Record, Source
from vimoe_jax.text.normalize import normalize
from vimoe_jax.text.tokenizers import Tokenizer

Row = dict[str, np.ndarray]


class _Cache(dict):
    """Decoded pictures by record; a copy sent to a worker process starts empty."""

    def __reduce__(self):
        return _Cache, ()


@dataclasses.dataclass(frozen=True)
class RowMaker:
    """Builds training rows; picklable, for Grain's worker processes.

    Attributes:
      source: records; the parts of a mixture may have styles of their own.
      tokenizer: of questions and answers.
      image_size: pixels on a side.
      text_length: T, text tokens of a row.
      patches: P, places of a picture.
      max_pictures: I, pictures of a row; a record with more is bad.
      resize: how a picture becomes square (`images.decode`).
      max_questions: at most so many segments; 0 for as many as fit.
      vary_prompts: draw the prompt's wording, in place of the one used at evaluation.
      cache_images: keep decoded pictures in memory.
    """

    source: Source
    tokenizer: Tokenizer
    image_size: int
    text_length: int
    patches: int
    max_pictures: int = 1
    resize: str = "squash"
    max_questions: int = 0
    vary_prompts: bool = False
    cache_images: bool = False
    _cache: _Cache = dataclasses.field(default_factory=_Cache)

    def __call__(self, index: int, seed: int) -> Row:
        """The row of a record; the seed decides questions, their order, answers and wordings.

        Returns:
          The fields of a `Batch` by name, without the axis B; a bad record is skipped, and its row
          is all padding.
        """
        try:
            record = self.source[index]
            pixels = self._pixels(index, record)
            style = style_of(self.source, index)
            segments = self._segments(record, style, np.random.default_rng(seed))
        except BadRecord:
            pixels, segments = None, []
        return self._fill(index, pixels, segments)

    def _pixels(self, index: int, record: Record) -> list[np.ndarray]:
        if index in self._cache:
            return self._cache[index]
        pixels = decode_all(record, self.image_size, self.resize, self.max_pictures)
        if self.cache_images:
            self._cache[index] = pixels
        return pixels

    def _segments(
        self, record: Record, style: str, rng: np.random.Generator
    ) -> list[prompts.Segment]:
        """Segments in random order until the row is full; one that is too long is passed over."""
        chosen: list[prompts.Segment] = []
        room = self.text_length
        order = rng.permutation(len(record.qa))
        for i in order:
            s = self._draw(record.qa[i], style, rng)
            if len(s.tokens) > room:
                if chosen:
                    continue
                s = s.cut(room)  # longer than a whole row: its beginning is better than nothing
            chosen.append(s)
            room -= len(s.tokens)
            if len(chosen) == self.max_questions:
                break
        return chosen

    def _draw(self, qa: QA, style: str, rng: np.random.Generator) -> prompts.Segment:
        """A question with one of its references, wordings and, where asked for, explanations."""
        style = prompts.suited(qa, style)
        answer = int(rng.integers(len(qa.answers)))
        wordings = prompts.num_wordings(qa.task, style) if self.vary_prompts else 1
        wording = int(rng.integers(wordings))
        explanation = int(rng.integers(len(qa.explanations))) if style == "explain" else 0
        return prompts.segment(
            qa, self.tokenizer, answer=answer, wording=wording, style=style, explanation=explanation
        )

    def _fill(
        self, index: int, pixels: list[np.ndarray] | None, segments: Sequence[prompts.Segment]
    ) -> Row:
        size, length = self.image_size, self.max_pictures * self.patches + self.text_length
        row = {
            "pictures": stack_pictures(pixels or [], self.max_pictures, size),
            "tokens": np.full((length,), self.tokenizer.pad_id, np.int32),
            "targets": np.full((length,), self.tokenizer.pad_id, np.int32),
            "weights": np.zeros((length,), np.float32),
            "segments": np.zeros((length,), np.int32),
            "positions": np.zeros((length,), np.int32),
            "record": np.int32(index),
            "skipped": np.bool_(pixels is None),
            "truncated": np.int32(0),
        }
        shared = start = self.patches * len(pixels or [])
        row["tokens"][:shared] = PICTURE
        row["segments"][:shared] = SHARED
        row["positions"][:shared] = np.arange(shared)
        for number, s in enumerate(segments, 1):
            place = slice(start, start + len(s.tokens))
            row["tokens"][place] = s.tokens
            row["targets"][place] = s.targets
            row["weights"][place] = s.weights
            row["segments"][place] = number
            row["positions"][place] = shared + np.arange(len(s.tokens))
            row["truncated"] += np.int32(s.targets[-1] != self.tokenizer.eos_id)
            start = place.stop
        return row


def decode_all(record: Record, size: int, mode: str, most: int) -> list[np.ndarray]:
    """The pictures of a record, each (size, size, 3) uint8.

    Raises:
      BadRecord: one cannot be read, or there are more than `most`.
    """
    if len(record.pictures) > most:
        raise BadRecord(
            f"{record.id}: {len(record.pictures)} pictures, but config.data.max_pictures = {most}"
        )
    return [images.decode(data, size, mode, name=record.id) for data in record.pictures]


def stack_pictures(pixels: Sequence[np.ndarray], most: int, size: int) -> np.ndarray:
    """(most, size, size, 3) uint8, zeros behind the last picture."""
    stacked = np.zeros((most, size, size, 3), np.uint8)
    for place, one in zip(stacked, pixels, strict=False):
        place[:] = one
    return stacked


def picture_error(source: Source, index: int) -> str | None:
    """What is wrong with a record, None if nothing is: opens its picture and builds its prompts."""
    try:
        record = source[index]
        for data in record.pictures:
            images.decode(data, 8, name=record.id)
        for qa in record.qa:
            prompts.prompt_of(qa)
            if not all(map(normalize, qa.answers)):
                raise BadRecord(f"{record.id}: {qa.id}: empty answer")
    except BadRecord as e:
        return str(e)
    return None


def describe(source: Source, index: int) -> str:
    """Why a record was skipped; of a mixture, beginning with the part."""
    reason = picture_error(source, index) or f"record {index}: no question that can be used"
    if isinstance(source, Mixture) and len(source.components) > 1:
        return f"{source.components[source.component_number(index)].label}: {reason}"
    return reason
