"""Which places a row holds, what stands there, and which of them see which."""

from __future__ import annotations

import enum

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from vimoe_jax.base import struct
from vimoe_jax.data.batch import PICTURE, SHARED


class TokenKind(enum.IntEnum):
    """By what MoE statistics are split."""

    IMAGE = 0
    QUESTION = 1
    ANSWER = 2


NUM_KINDS = len(TokenKind)


@struct.dataclass
class Places:
    """What is known of each place of a row before the first layer, whatever it holds.

    Attributes:
      valid: False for padding.
      kind: `TokenKind`.
      ids: what hash routers look up.
    """

    valid: Bool[Array, "B S"]
    kind: Int[Array, "B S"]
    ids: Int[Array, "B S"]


@struct.dataclass
class Layout:
    """Where a stream of S places holds its pictures and where its text.

    A row's *entries* are its I·P picture features, then its T text tokens. The stream is a
    permutation of them, so that both directions are gathers, and both gradients too. (Entries that
    a row does not use stand at its padding places.)

    Attributes:
      entry: of each place.
      place: of each entry.
      is_picture: whether a place holds a picture's feature.
    """

    entry: Int[Array, "B S"]
    place: Int[Array, "B S"]
    is_picture: Bool[Array, "B S"]
    num_pictures: int = struct.field(pytree_node=False)  # I·P

    @classmethod
    def create(cls, tokens: Int[Array, "B S"], num_pictures: int) -> Layout:
        """Reads the placeholders of a stream.

        Args:
          tokens: `PICTURE` at a picture's places.
          num_pictures: I·P.
        """
        places = tokens.shape[1]
        is_picture = tokens == PICTURE
        before = jnp.cumsum(is_picture, 1) - is_picture
        # The entries of pictures that a row does not have go to its last places.
        missing = num_pictures - is_picture.sum(1, keepdims=True)
        stands = jnp.arange(places) - before  # text places before
        spare = stands >= places - num_pictures
        entry = jnp.where(is_picture, before, num_pictures + stands)
        entry = jnp.where(~is_picture & spare, entry - places + num_pictures - missing, entry)
        place = jnp.argsort(entry, 1)
        return cls(entry, place.astype(jnp.int32), is_picture, num_pictures)

    def merge(
        self, pictures: Float[Array, "B IP D"] | None, text: Float[Array, "B T D"]
    ) -> Float[Array, "B S D"]:
        """Picture features and text embeddings as one stream."""
        if pictures is None or not self.num_pictures:
            return text
        return _permute(jnp.concatenate([pictures, text], 1), self.entry, self.place)

    def text(self, x: Array) -> Array:
        """(B, S, …) -> (B, T, …): what stands at each text token's place."""
        if not self.num_pictures:
            return x
        place = self.place[:, self.num_pictures :]
        if x.ndim == 2:
            return jnp.take_along_axis(x, place, 1)
        return _pick(x, place, self.entry - self.num_pictures)

    def has_picture(self, patches: int) -> Bool[Array, "B I"]:
        """Which of its I pictures each row holds."""
        count = self.is_picture.sum(1) // patches
        return jnp.arange(self.num_pictures // patches) < count[:, None]

    def ids(self, tokens: Int[Array, "B S"], vocab_size: int, patches: int) -> Int[Array, "B S"]:
        """What hash routers look up: V and up for the P places of a picture, else the token."""
        return jnp.where(self.is_picture, vocab_size + self.entry % patches, tokens)


def _rows(x: Float[Array, "B N D"], index: Int[Array, "B M"]) -> Float[Array, "B M D"]:
    """Rows by index within each row of the batch; an index out of range gives zeros."""
    return jax.vmap(lambda t, i: jnp.take(t, i, axis=0, mode="fill", fill_value=0))(x, index)


@jax.custom_vjp
def _permute(
    x: Float[Array, "B N D"], index: Int[Array, "B N"], inverse: Int[Array, "B N"]
) -> Float[Array, "B N D"]:
    """`x[b, index[b]]` for permutations; its gradient is a gather, where autodiff would scatter."""
    return _rows(x, index)


_permute.defvjp(
    lambda x, index, inverse: (_rows(x, index), inverse),
    lambda inverse, d_y: (_rows(d_y, inverse), None, None),
)


@jax.custom_vjp
def _pick(
    x: Float[Array, "B N D"], index: Int[Array, "B M"], back: Int[Array, "B N"]
) -> Float[Array, "B M D"]:
    """`x[b, index[b]]` for indices that differ; `back` has each row's place in the result, or a
    number outside of [0, M) for one that is not in it."""
    return _rows(x, index)


_pick.defvjp(
    lambda x, index, back: (_rows(x, index), (back, index.shape[1])),
    # Below 0 would count from the end.
    lambda saved, d_y: (_rows(d_y, jnp.where(saved[0] < 0, saved[1], saved[0])), None, None),
)


def attention_mask(segments: Int[Array, "B S"]) -> Bool[Array, "B S S"]:
    """Causal; a place sees what is `SHARED` and its own segment, nothing else.

    A padding place (segment 0) sees itself, which keeps its softmax finite; nobody sees it.
    """
    place, valid = jnp.arange(segments.shape[1]), segments != 0
    causal = place[:, None] >= place[None, :]
    same = (segments[:, :, None] == segments[:, None, :]) | (segments[:, None, :] == SHARED)
    mask = causal & same & valid[:, None, :] & valid[:, :, None]
    return mask | (place[:, None] == place[None, :])


def token_kinds(is_picture: Bool[Array, "B S"], weights: Float[Array, "B S"]) -> Int[Array, "B S"]:
    """Image, question or answer, by place; a token is an answer's if the loss is taken after it."""
    text = jnp.where(weights > 0, TokenKind.ANSWER, TokenKind.QUESTION)
    return jnp.where(is_picture, TokenKind.IMAGE, text).astype(jnp.int32)
