"""Pictures and texts of tests as the rows that models take."""

import numpy as np

from vimoe_jax.data.batch import PICTURE, SHARED, Batch, Prompts


def prompts(pictures, tokens, length, patches):
    """Questions with as many pictures as each has.

    Args:
      pictures: a list of (H, W, 3) arrays per row.
      tokens: (B, n), padded on the right.
      length: (B,).
      patches: P.
    """
    rows, most, size = len(pictures), max(map(len, pictures)), tokens.shape[1]
    side = next((p[0].shape[0] for p in pictures if p), 8)
    batch = Prompts(
        pictures=np.zeros((rows, most, side, side, 3), np.uint8),
        tokens=np.zeros((rows, most * patches + size), np.int32),
        length=np.array([len(p) * patches for p in pictures], np.int32) + length,
        valid=np.ones(rows, bool),
    )
    for i, own in enumerate(pictures):
        shared = patches * len(own)
        for j, one in enumerate(own):
            batch.pictures[i, j] = one
        batch.tokens[i, :shared] = PICTURE
        batch.tokens[i, shared : shared + length[i]] = tokens[i, : length[i]]
    return batch


def batch_of(found):
    """`prompts` as teacher-forced rows, one segment each, no token an answer's."""
    place = np.arange(found.tokens.shape[1], dtype=np.int32)
    used = (place < found.length[:, None]) & found.valid[:, None]
    segments = np.where(found.tokens == PICTURE, SHARED, used.astype(np.int32))
    return Batch(
        pictures=found.pictures,
        tokens=found.tokens,
        targets=np.zeros_like(found.tokens),
        weights=np.zeros(found.tokens.shape, np.float32),
        segments=segments.astype(np.int32),
        positions=np.broadcast_to(place, found.tokens.shape),
    )
