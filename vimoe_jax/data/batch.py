"""What a step is given: rows of pictures and text as one stream of places (no JAX at import)."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

# What `tokens` holds at a picture's places, P of them in a row; no tokenizer has such an id.
PICTURE = -1

# What `segments` holds where a place is seen by all segments of its row.
SHARED = -1


class Batch(NamedTuple):
    """B rows of S places: P for each of at most I pictures, T for text (S = I·P + T).

    A row's stream may hold its pictures anywhere, and fewer than I of them: the k-th run of P
    `PICTURE` places stands for its k-th picture. What follows a row's last place is padding. A row
    has at most T text tokens.

    Arrays are NumPy's on the host and JAX's on a mesh. The last three stay on the host.

    Attributes:
      pictures: (B, I, H, W, 3) uint8, zeros where a row has fewer.
      tokens: (B, S) int32, `PICTURE` where a picture stands.
      targets: (B, S) int32, the next token.
      weights: (B, S) float32, 1 where the target is an answer's.
      segments: (B, S) int32: 0 for padding, 1, 2, … for the questions of a row, each of which sees
        itself and what is `SHARED`.
      positions: (B, S) int32, for the rotary angles: a segment goes on where the row's shared
        places end.
      record: (B,) int32, index of the row's record; None on a mesh.
      skipped: (B,) bool, where the record is bad and the row is padding; None on a mesh.
      truncated: (B,) int32, segments that were cut at the row's end; None on a mesh.
    """

    pictures: Any
    tokens: Any
    targets: Any
    weights: Any
    segments: Any
    positions: Any
    record: Any = None
    skipped: Any = None
    truncated: Any = None

    def for_step(self) -> Batch:
        """What the compiled step reads."""
        return self._replace(record=None, skipped=None, truncated=None)

    def rows(self, start: int, stop: int) -> Batch:
        """Rows `start` to `stop`, as a batch."""
        return Batch(*(None if x is None else x[start:stop] for x in self))

    def text(self) -> Any:
        """(B, S) bool: which places are text."""
        return (self.segments != 0) & (self.tokens != PICTURE)

    @classmethod
    def picture_first(
        cls,
        picture: np.ndarray,
        patches: int,
        *,
        tokens: np.ndarray,
        targets: np.ndarray,
        weights: np.ndarray,
        segments: np.ndarray,
        positions: np.ndarray,
    ) -> Batch:
        """Rows of one picture, and behind its P places the text.

        Args:
          picture: (B, H, W, 3) uint8.
          patches: P.
          tokens: (B, T), as `targets`, `weights`, `segments`; without the picture.
          targets: (B, T).
          weights: (B, T).
          segments: (B, T), 0 for padding.
          positions: (B, T), from 0 in each segment.
        """

        def behind(text: np.ndarray, value: int) -> np.ndarray:
            front = np.full((len(text), patches), value, text.dtype)
            return np.concatenate([front, text], 1)

        places = np.broadcast_to(np.arange(patches, dtype=np.int32), (len(tokens), patches))
        return cls(
            pictures=picture[:, None],
            tokens=behind(tokens, PICTURE),
            targets=behind(targets, 0),
            weights=behind(weights, 0),
            segments=behind(segments, SHARED),
            positions=np.concatenate([places, patches + positions], 1).astype(np.int32),
        )

    @classmethod
    def shapes(
        cls, *, rows: int, image_size: int, patches: int, text_length: int, max_pictures: int
    ) -> Batch:
        """(shape, dtype) of each array of a step's batch.

        Args:
          rows: B.
          image_size: H = W, pixels.
          patches: P, places of a picture.
          text_length: T.
          max_pictures: I.
        """
        places = (rows, max_pictures * patches + text_length)
        integers = (places, np.int32)
        return cls(
            pictures=((rows, max_pictures, image_size, image_size, 3), np.uint8),
            tokens=integers,
            targets=integers,
            weights=(places, np.float32),
            segments=integers,
            positions=integers,
        )


class Prompts(NamedTuple):
    """Questions to be answered, a row each: their pictures' places, then their tokens.

    Attributes:
      pictures: (B, I, H, W, 3) uint8, zeros where a row has fewer.
      tokens: (B, S) int32, `PICTURE` where a picture stands, padded on the right.
      length: (B,) int32, places that are not padding.
      valid: (B,) bool, False for padding and for questions whose picture is bad.
    """

    pictures: Any
    tokens: Any
    length: Any
    valid: Any
