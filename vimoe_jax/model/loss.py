"""Cross-entropy over a large vocabulary, without holding all of its logits."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from vimoe_jax.base import struct
from vimoe_jax.parallel import rules
from vimoe_jax.parallel.rules import constrain

# Logits that a device may hold at once (elements); above it, tokens come in chunks.
_MAX_LOGITS = 1 << 27  # half a GiB


@struct.dataclass
class TokenLoss:
    """Sums over a batch's weighted tokens (divide by `weight` for means)."""

    loss: Float[Array, ""]
    correct: Float[Array, ""]
    weight: Float[Array, ""]


@jax.named_scope("cross_entropy")
def cross_entropy(
    hidden: Float[Array, "B S D"],
    matrix: Float[Array, "V D"],
    targets: Int[Array, "B S"],
    weights: Float[Array, "B S"],
) -> TokenLoss:
    """Summed -log softmax(hidden · matrixᵀ)[target], times the weights; float32.

    Differentiable in `hidden` and `matrix` through `loss` only: the rest counts as constant. Since
    the loss is a plain sum, its gradients are taken on the way forward, from the same logits,

      d_logits = (softmax(logits) - onehot(target)) · weight
      d_hidden = d_logits · matrix      d_matrix = d_logitsᵀ · hidden

    and the backward pass only scales them: three products with the vocabulary instead of four, and
    no logits are saved. Beyond 2^27 logits a device, chunks of tokens are scanned.

    Args:
      hidden: float32 or bfloat16; products run in its dtype and accumulate in float32.
      matrix: float32 master weights; so is its gradient.
      targets: in [0, V).
      weights: float32; 0 leaves a token out.
    """
    return _cross_entropy(hidden, matrix, targets, weights)


@jax.custom_vjp
def _cross_entropy(hidden, matrix, targets, weights) -> TokenLoss:
    matrix = _gathered(matrix, hidden.dtype)

    def body(total: TokenLoss, chunk: Any) -> tuple[TokenLoss, None]:
        return jax.tree.map(jnp.add, total, _softmax(matrix, *chunk)[0]), None

    return _over_chunks(body, _zero(), (hidden, targets, weights), matrix.shape[0])[0]


def _forward(hidden, matrix, targets, weights) -> tuple[TokenLoss, Any]:
    """The loss, and its gradients by `hidden` and `matrix` for a cotangent of 1."""
    cast = _gathered(matrix, hidden.dtype)
    product = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)

    def body(carry: Any, chunk: Any) -> tuple[Any, Any]:
        total, d_matrix = carry
        hidden, targets, weights = chunk
        new, exp, sums = _softmax(cast, *chunk)
        # Compared, not scattered, so that all of this is one fused pass over the logits.
        d_logits = exp * (weights / sums)[:, None]
        hit = targets[:, None] == jnp.arange(exp.shape[-1], dtype=targets.dtype)
        d_logits -= jnp.where(hit, weights[:, None], 0)
        d_logits = d_logits.astype(hidden.dtype)
        d_hidden = product("tv,vd->td", d_logits, cast).astype(hidden.dtype)
        own = (x.reshape(groups, -1, x.shape[-1]) for x in (d_logits, hidden))
        d_matrix += constrain(product("gtv,gtd->gvd", *own), ("batch", "vocab", None))
        return (jax.tree.map(jnp.add, total, new), d_matrix), d_hidden

    # Each group of devices sums over its own tokens; they add up once, after the last chunk.
    groups = hidden.shape[0] // _own(hidden.shape[:1], ("batch",))[0]
    zeros = jnp.zeros((groups, *matrix.shape), jnp.float32)
    start = (_zero(), constrain(zeros, ("batch", "vocab", None)))
    (total, d_matrix), d_hidden = _over_chunks(
        body, start, (hidden, targets, weights), matrix.shape[0]
    )
    d_matrix = constrain(d_matrix.sum(0), ("vocab", "embed"), rules.KEPT)
    return total, (d_hidden, d_matrix.astype(matrix.dtype))


@jax.named_scope("cross_entropy")
def _backward(gradients: Any, cotangent: TokenLoss) -> tuple[Any, ...]:
    d_hidden, d_matrix = ((g * cotangent.loss).astype(g.dtype) for g in gradients)
    return d_hidden, d_matrix, None, None


_cross_entropy.defvjp(_forward, _backward)


def _zero() -> TokenLoss:
    return TokenLoss(*(jnp.zeros((), jnp.float32) for _ in range(3)))


def _gathered(matrix: Float[Array, "V D"], dtype: jnp.dtype) -> Float[Array, "V D"]:
    """In the compute dtype and, once for all chunks, gathered."""
    return constrain(matrix.astype(dtype), ("vocab", "embed"))


def _softmax(
    matrix: Float[Array, "V D"],
    hidden: Float[Array, "T D"],
    targets: Int[Array, "T"],
    weights: Float[Array, "T"],
) -> tuple[TokenLoss, Float[Array, "T V"], Float[Array, "T"]]:
    """A chunk's sums, and its softmax as exp(logits - max) and the sum of that."""
    logits = jnp.einsum("td,vd->tv", hidden, matrix, preferred_element_type=jnp.float32)
    logits = constrain(logits, ("batch", "vocab"))
    top = logits.max(-1)
    right = jnp.take_along_axis(logits, targets[:, None], axis=-1)[:, 0]
    exp = jnp.exp(logits - top[:, None])
    sums = exp.sum(-1)
    loss = jnp.log(sums) + top - right
    # A tie counts as right only if nothing is larger: cheaper than argmax, the same otherwise.
    correct = (right >= top).astype(jnp.float32)
    totals = TokenLoss(jnp.sum(loss * weights), jnp.sum(correct * weights), jnp.sum(weights))
    return totals, exp, sums


def _over_chunks(
    body: Callable[[Any, Any], tuple[Any, Any]], start: Any, tokens: Any, vocab: int
) -> tuple[Any, Any]:
    """`lax.scan` over chunks of tokens with at most `_MAX_LOGITS` logits on any device.

    A chunk takes the same places of all rows, so that every device works on its own rows; only
    where one place of all rows is too much, it takes every n-th row.

    Args:
      body: (carry, chunk) -> (carry, None or an array (T, D)).
      start: the first carry.
      tokens: arrays (B, S, …); a chunk has T of their tokens as (T, …), padded with zeros.
      vocab: V.

    Returns:
      The last carry, and what `body` gave for each token (B, S, D), or None.
    """
    batch, length = tokens[0].shape[:2]
    own_rows, own_vocab = _own((batch, vocab), ("batch", "vocab"))
    rows = -(-own_rows // _parts(own_rows, own_vocab))
    places = -(-length // _parts(length, rows * own_vocab))
    rows *= batch // own_rows
    parts = (-(-batch // rows), -(-length // places))

    def cut(x: jax.Array) -> jax.Array:
        padding = [(0, rows * parts[0] - batch), (0, places * parts[1] - length)]
        x = jnp.pad(x, padding + [(0, 0)] * (x.ndim - 2))
        x = x.reshape(rows, *parts, places, *x.shape[2:])
        x = jnp.moveaxis(x, 0, 2).reshape(-1, rows * places, *x.shape[4:])
        return constrain(x, (None, "batch") + (None,) * (x.ndim - 2))

    def join(x: jax.Array) -> jax.Array:
        x = jnp.moveaxis(x.reshape(*parts, rows, places, *x.shape[2:]), 2, 0)
        x = x.reshape(rows * parts[0], places * parts[1], *x.shape[4:])[:batch, :length]
        return constrain(x, ("batch",) + (None,) * (x.ndim - 1))

    chunks = jax.tree.map(cut, tokens)
    if parts == (1, 1):
        carry, out = body(start, jax.tree.map(lambda x: x[0], chunks))
        out = jax.tree.map(lambda x: x[None], out)
    else:
        carry, out = jax.lax.scan(body, start, chunks)
    return carry, jax.tree.map(join, out)


def _own(shape: tuple[int, ...], axes: rules.Axes) -> tuple[int, ...]:
    """The shape of one device's share."""
    mesh = rules.active_mesh()
    return shape if mesh is None else rules.sharding(axes, shape, mesh).shard_shape(shape)


def _parts(count: int, logits: int) -> int:
    """Into how many parts to cut `count` things of so many logits each, none too large."""
    return -(-count // max(1, _MAX_LOGITS // logits))
