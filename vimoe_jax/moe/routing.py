"""Assignments: which token goes to which expert, and into which of its slots; and mixtures.

Axes: G groups, M tokens in a group, E experts, K experts per token, C slots per expert and group.
"""

from __future__ import annotations

import dataclasses
import math
from fractions import Fraction

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from vimoe_jax.base import struct


@struct.dataclass
class Assignment:
    """Where each token's K choices go.

    The slots that are taken in an expert's buffer are the first ones: 0, 1, 2, … without a gap.

    Attributes:
      expert: the chosen expert, in [0, E).
      slot: the place in that expert's buffer; a choice with `slot >= C` is dropped.
      weight: the combine weight, differentiable with respect to the gates; 0 for padding tokens.
      num_experts: E.
      capacity: C, slots of an expert in each group.
    """

    expert: Int[Array, "G M K"]
    slot: Int[Array, "G M K"]
    weight: Float[Array, "G M K"]
    num_experts: int = struct.field(pytree_node=False)
    capacity: int = struct.field(pytree_node=False)

    def renormalize(self) -> Assignment:
        """The same with each token's weights divided by their sum."""
        total = self.weight.sum(-1, keepdims=True)
        return dataclasses.replace(self, weight=self.weight / jnp.maximum(total, 1e-9))

    def counts(
        self, valid: Bool[Array, "G M"]
    ) -> tuple[Float[Array, "G M E"], Float[Array, "G M E"]]:
        """How often each valid token was sent to each expert, and how often it found a slot."""
        kept = (self.slot < self.capacity) & valid[..., None]
        # A choice that has no slot was dropped if it would have weighed anything; otherwise nobody
        # made it (an expert that did not choose the token).
        routed = kept | (self.weight > 0)
        one_hot = jax.nn.one_hot(self.expert, self.num_experts, dtype=jnp.float32)
        return (
            jnp.einsum("gmk,gmke->gme", routed.astype(jnp.float32), one_hot),
            jnp.einsum("gmk,gmke->gme", kept.astype(jnp.float32), one_hot),
        )


@struct.dataclass
class Mixing:
    """Slots that hold mixtures of tokens, where no one chooses (soft MoE).

    Attributes:
      dispatch: share of each token in each slot; 0 for padding tokens.
      combine: share of each slot's result in each token's; sums to 1 per token, 0 for padding.
    """

    dispatch: Float[Array, "G M E C"]
    combine: Float[Array, "G M E C"]

    def renormalize(self) -> Mixing:
        """The same: a token's weights sum to 1 already."""
        return self

    def counts(
        self, valid: Bool[Array, "G M"]
    ) -> tuple[Float[Array, "G M E"], Float[Array, "G M E"]]:
        """How much of each token every expert gets, twice: nothing is dropped."""
        del valid
        share = self.combine.sum(-1)
        return share, share


def capacity(tokens: int, num_experts: int, k: int, factor: float, *, multiple_of: int = 4) -> int:
    """C = ⌈M·K·factor/E⌉, rounded up to a multiple and never more than the tokens (V-MoE §2.2).

    The factor is taken as the decimal it was written as: `ceil(100 * 1.1 / 10)` is 12 in floats and
    11 in truth.

    Raises:
      ValueError: no slot at all would be left, or an argument is not positive.
    """
    if tokens < 1 or num_experts < 1 or k < 1 or multiple_of < 1 or not factor > 0:
        raise ValueError(
            f"capacity needs positive arguments, not {tokens=}, {num_experts=}, {k=}, {factor=}"
        )
    if math.isinf(factor):
        return tokens
    slots = math.ceil(Fraction(tokens * k) * Fraction(str(factor)) / num_experts)
    slots = -(-slots // multiple_of) * multiple_of
    # A token takes at most one slot of an expert, so that more than M slots are never filled.
    return min(slots, tokens)


def assign(
    expert: Int[Array, "G M K"],
    weight: Float[Array, "G M K"],
    num_experts: int,
    capacity: int,
    *,
    priority: Float[Array, "G M"] | None = None,
    valid: Bool[Array, "G M"] | None = None,
) -> Assignment:
    """Gives each choice its slot, where the experts are settled already.

    Args:
      expert: each token's choices, first to last, all different.
      weight: their combine weights.
      num_experts: E.
      capacity: C, slots an expert has in each group.
      priority: tokens of higher priority take their slots first; token order if not given.
      valid: False for padding.

    Raises:
      ValueError: `capacity` is below 1.
    """
    num_groups, num_tokens, k = expert.shape
    if capacity < 1:
        raise ValueError(f"capacity must be at least 1, not {capacity}")
    queue = expert
    if valid is not None:
        weight = jnp.where(valid[..., None], weight, 0)
        # The sentinel E keeps padding out of every expert's queue.
        queue = jnp.where(valid[..., None], expert, num_experts)
    if priority is not None:
        order = jnp.argsort(-priority, axis=-1, stable=True)
        queue = jnp.take_along_axis(queue, order[..., None], axis=1)
    # Choice-major, so that first choices precede second ones.
    ranks = _rank_in_queue(queue.swapaxes(1, 2).reshape(num_groups, k * num_tokens), num_experts)
    slot = ranks.reshape(num_groups, k, num_tokens).swapaxes(1, 2)
    if priority is not None:
        slot = jnp.take_along_axis(slot, jnp.argsort(order, axis=-1)[..., None], axis=1)
    if valid is not None:
        slot = jnp.where(valid[..., None], slot, capacity)
    return Assignment(expert, slot, weight, num_experts, capacity)


def find_largest(
    scores: Float[Array, "G M E"], k: int
) -> tuple[Int[Array, "G M K"], Float[Array, "G M K"]]:
    """Indices and values of the K largest, descending.

    A few maxima in turn are several times cheaper than a sort of every row; a sort wins for many
    (not `jax.lax.top_k`, for which XLA gathers the tokens of all devices).
    """
    place = jnp.arange(scores.shape[-1], dtype=jnp.int32)
    if k > 8:
        places = jnp.broadcast_to(place, scores.shape)
        values, index = jax.lax.sort((-scores, places), is_stable=True, num_keys=1)
        return index[..., :k], -values[..., :k]
    chosen, values = [], []
    for _ in range(k):
        index = jnp.argmax(scores, axis=-1).astype(jnp.int32)
        chosen.append(index)
        values.append(jnp.max(scores, axis=-1))
        scores = jnp.where(place == index[..., None], -jnp.inf, scores)
    return jnp.stack(chosen, -1), jnp.stack(values, -1)


def gates_of(gates: Float[Array, "G M E"], expert: Int[Array, "G M K"]) -> Float[Array, "G M K"]:
    """The gates of chosen experts; by comparison rather than by indexing: its gradient is then no
    scatter."""
    one_hot = jax.nn.one_hot(expert, gates.shape[-1], dtype=gates.dtype)
    return jnp.sum(one_hot * gates[:, :, None], -1)


_FEW = 512  # entries up to which each is compared with each
_BLOCK = 128  # entries whose ranks one triangular product gives


def _rank_in_queue(expert: Int[Array, "G N"], num_experts: int) -> Int[Array, "G N"]:
    """For each entry, how many earlier entries of its group name the same expert.

    A cumulative sum of one-hot rows, taken as products with a triangular matrix block by block:
    several times faster on accelerators than sorting or scanning. Exact, since counts of a block
    are small integers. A few entries (decoding) are compared each with each, in one pass. Entries
    that name no expert (E) get whatever.
    """
    num_groups, num = expert.shape
    if num <= _FEW:
        earlier = jnp.tril(jnp.ones((num, num), bool), -1)
        return jnp.sum((expert[:, :, None] == expert[:, None, :]) & earlier, -1, dtype=jnp.int32)
    padding = -num % _BLOCK
    queue = jnp.pad(expert, ((0, 0), (0, padding)), constant_values=num_experts)
    one_hot = jax.nn.one_hot(queue, num_experts, dtype=jnp.bfloat16)
    one_hot = one_hot.reshape(num_groups, -1, _BLOCK, num_experts)
    before = jnp.tril(jnp.ones((_BLOCK, _BLOCK), jnp.bfloat16), -1)
    inside = jnp.einsum("ij,gnje->gnie", before, one_hot, preferred_element_type=jnp.float32)
    per_block = one_hot.sum(2, dtype=jnp.float32)
    rank = inside + (jnp.cumsum(per_block, 1) - per_block)[:, :, None]
    rank = jnp.sum(rank * one_hot, -1).astype(jnp.int32)
    return rank.reshape(num_groups, -1)[:, :num]
