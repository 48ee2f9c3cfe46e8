"""Which tokens a row holds, and which of them see which."""

from __future__ import annotations

import enum

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


class TokenKind(enum.IntEnum):
    """By what MoE statistics are split."""

    IMAGE = 0
    QUESTION = 1
    ANSWER = 2


NUM_KINDS = len(TokenKind)


def row_segments(
    segments: Int[Array, "B S"], num_patches: int
) -> tuple[Int[Array, "B PS"], Bool[Array, "B PS"]]:
    """Prepends the picture to rows of text.

    Args:
      segments: 0 for padding, 1, 2, … for the questions of a row.
      num_patches: P.

    Returns:
      Segments with -1 for the picture's P places, and which places are not padding (the picture of
      a row without text is padding).
    """
    used = segments > 0
    picture = jnp.full((segments.shape[0], num_patches), -1, segments.dtype)
    seen = jnp.broadcast_to(used.any(-1, keepdims=True), picture.shape)
    return jnp.concatenate([picture, segments], 1), jnp.concatenate([seen, used], 1)


def attention_mask(segments: Int[Array, "B S"], valid: Bool[Array, "B S"]) -> Bool[Array, "B S S"]:
    """Causal; a token sees the picture (segment -1) and its own segment, nothing else.

    A padding token sees itself, which keeps its softmax finite; nobody sees it.
    """
    place = jnp.arange(segments.shape[1])
    causal = place[:, None] >= place[None, :]
    same = (segments[:, :, None] == segments[:, None, :]) | (segments[:, None, :] == -1)
    mask = causal & same & valid[:, None, :] & valid[:, :, None]
    return mask | (place[:, None] == place[None, :])


def token_kinds(weights: Float[Array, "B S"], num_patches: int) -> Int[Array, "B PS"]:
    """Image, question or answer, by place; a token is an answer's if the loss is taken after it."""
    picture = jnp.full((weights.shape[0], num_patches), TokenKind.IMAGE, jnp.int32)
    text = jnp.where(weights > 0, TokenKind.ANSWER, TokenKind.QUESTION).astype(jnp.int32)
    return jnp.concatenate([picture, text], 1)
