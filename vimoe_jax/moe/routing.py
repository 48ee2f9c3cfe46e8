"""Gates to an assignment: which token goes to which expert, and into which of its slots.

Axes: G groups, M tokens in a group, E experts, K experts per token, C slots per expert and group.
"""

from __future__ import annotations

import dataclasses
import math
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
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
    """

    expert: Int[Array, "G M K"]
    slot: Int[Array, "G M K"]
    weight: Float[Array, "G M K"]

    def renormalized(self) -> Assignment:
        """The same with each token's weights divided by their sum."""
        total = self.weight.sum(-1, keepdims=True)
        return dataclasses.replace(self, weight=self.weight / jnp.maximum(total, 1e-9))

    def counts(
        self, num_experts: int, capacity: int, valid: Bool[Array, "G M"]
    ) -> tuple[Float[Array, "G M E"], Float[Array, "G M E"]]:
        """How often each valid token was sent to each expert, and how often it found a slot."""
        kept = (self.slot < capacity) & valid[..., None]
        # A choice that has no slot was dropped if it would have weighed anything; otherwise nobody
        # made it (an expert that did not choose the token).
        routed = kept | (self.weight > 0)
        one_hot = jax.nn.one_hot(self.expert, num_experts, dtype=jnp.float32)
        return (
            jnp.einsum("gmk,gmke->gme", routed.astype(jnp.float32), one_hot),
            jnp.einsum("gmk,gmke->gme", kept.astype(jnp.float32), one_hot),
        )


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


def top_k(
    gates: Float[Array, "G M E"],
    k: int,
    capacity: int,
    *,
    batch_priority: bool = False,
    valid: Bool[Array, "G M"] | None = None,
    bias: Float[Array, "E"] | None = None,
) -> Assignment:
    """Sends every valid token to its K largest gates (V-MoE, Riquelme et al. 2021, §2 and §3.2).

    Slots are filled by priority: all first choices before all second ones; within a choice in token
    order or, with `batch_priority`, by the token's largest chosen gate, descending. What finds its
    expert full is dropped. Padding tokens take no slot. Of equal gates, the lower expert comes
    first.

    Args:
      gates: router probabilities, float32.
      k: experts a token, at most E.
      capacity: C, slots an expert has in each group.
      batch_priority: order tokens by their largest gate (BPR) in place of their position.
      valid: False for padding; all True if not given.
      bias: added to the gates for choosing, not for combining (DeepSeek-V3's balancing).

    Raises:
      ValueError: `k` is not in [1, E] or `capacity` is below 1.
    """
    num_experts = gates.shape[-1]
    if not 1 <= k <= num_experts:
        raise ValueError(f"k must be between 1 and E = {num_experts}, not {k}")
    scores = jax.lax.stop_gradient(gates if bias is None else gates + bias)
    expert, values = largest(scores, k)
    weight = _taken(gates, expert, values) if bias is None else at(gates, expert)
    priority = jax.lax.stop_gradient(weight.max(-1)) if batch_priority else None
    return assign(expert, weight, num_experts, capacity, priority=priority, valid=valid)


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
    return Assignment(expert=expert, slot=slot, weight=weight)


def expert_choice(
    gates: Float[Array, "G M E"], capacity: int, *, valid: Bool[Array, "G M"] | None = None
) -> Assignment:
    """Every expert takes the C tokens whose gates for it are largest (Zhou et al. 2022).

    Loads are equal by construction; a token may be taken by any number of experts, or by none. Who
    is taken depends on all tokens of the group, later ones too: not for causal models.

    Args:
      gates: router probabilities, float32.
      capacity: C, tokens an expert takes of each group; C = M·factor/E in the paper. Where fewer
        tokens are valid, it takes all of them.
      valid: False for padding.

    Returns:
      An assignment with K = E, choice e being expert e; where the expert did not take the token,
      `slot` is C and `weight` is 0.

    Raises:
      ValueError: `capacity` is below 1.
    """
    num_experts = gates.shape[-1]
    if capacity < 1:
        raise ValueError(f"capacity must be at least 1, not {capacity}")
    score = jax.lax.stop_gradient(gates)
    if valid is not None:
        score = jnp.where(valid[..., None], score, -jnp.inf)
    # A token's slot is its rank among its group's tokens: the sorting permutation, inverted.
    order = jnp.argsort(-score, axis=1, stable=True)
    slot = jnp.argsort(order, axis=1).astype(jnp.int32)
    taken = slot < capacity
    if valid is not None:
        taken &= valid[..., None]
    expert = jnp.broadcast_to(jnp.arange(num_experts, dtype=jnp.int32), gates.shape)
    return Assignment(expert, jnp.where(taken, slot, capacity), jnp.where(taken, gates, 0))


def hash_table(num_ids: int, num_experts: int, k: int, seed: int = 0) -> np.ndarray:
    """A fixed random choice of K different experts for each token id (Hash layers, Roller 2021).

    Ids are dealt out evenly: each expert is the first choice of as many ids as any other, give or
    take one.

    Returns:
      int32 (num_ids, K).

    Raises:
      ValueError: `k` is not in [1, E].
    """
    if not 1 <= k <= num_experts:
        raise ValueError(f"k must be between 1 and E = {num_experts}, not {k}")
    rng = np.random.default_rng(seed)
    first = rng.permutation(np.arange(num_ids) % num_experts)
    # The other choices lie at different distances round the ring of experts: never the same twice.
    steps = np.argsort(rng.random((num_ids, num_experts - 1)), axis=1)[:, : k - 1] + 1
    return ((first[:, None] + np.pad(steps, ((0, 0), (1, 0)))) % num_experts).astype(np.int32)


def soft(
    logits: Float[Array, "G M E C"], valid: Bool[Array, "G M"] | None = None
) -> tuple[Float[Array, "G M E C"], Float[Array, "G M E C"]]:
    """Soft MoE (Puigcerver et al. 2023): every slot is a mixture of tokens, and the other way.

    Args:
      logits: affinity of each token and slot, float32.
      valid: False for padding, which is in no mixture.

    Returns:
      dispatch, a softmax over the group's tokens; combine, a softmax over all slots.
    """
    flat = logits.reshape(*logits.shape[:2], -1)
    combine = jax.nn.softmax(flat, axis=2)
    if valid is None:
        dispatch = jax.nn.softmax(flat, axis=1)
    else:
        mask = valid[..., None]
        # A finite floor, and the mask again after it: a group without tokens gives 0, not NaN.
        dispatch = jax.nn.softmax(jnp.where(mask, flat, -1e30), axis=1) * mask
        combine = combine * mask
    shape = logits.shape
    return dispatch.reshape(shape), combine.reshape(shape)


def largest(
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


def at(gates: Float[Array, "G M E"], expert: Int[Array, "G M K"]) -> Float[Array, "G M K"]:
    """The gates of chosen experts; by comparison rather than by indexing: its gradient is then no
    scatter."""
    one_hot = jax.nn.one_hot(expert, gates.shape[-1], dtype=gates.dtype)
    return jnp.sum(one_hot * gates[:, :, None], -1)


@jax.custom_jvp
def _taken(gates, expert, values):
    """`at`, where the values are known already."""
    del gates, expert
    return values


@_taken.defjvp
def _taken_jvp(primals, tangents):
    _, expert, values = primals
    return values, at(tangents[0], expert)


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
