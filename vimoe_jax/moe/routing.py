"""Gates to an assignment: which token goes to which expert, and into which of its slots.

Axes: G groups, M tokens in a group, E experts, K experts per token, C slots per expert and group.
"""

from __future__ import annotations

import math
from fractions import Fraction

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int


@struct.dataclass
class Assignment:
    """Where each token's K choices go.

    Attributes:
      expert: the chosen expert, in [0, E).
      slot: the place in that expert's buffer; a choice with `slot >= C` is dropped.
      weight: the combine weight, differentiable with respect to the gates; 0 for padding tokens.
    """

    expert: Int[Array, "G M K"]
    slot: Int[Array, "G M K"]
    weight: Float[Array, "G M K"]


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
) -> Assignment:
    """Sends every valid token to its K largest gates (V-MoE, Riquelme et al. 2021, §2 and §3.2).

    Slots are filled by priority: all first choices before all second ones; within a choice in token
    order or, with `batch_priority`, by the token's largest gate, descending. What finds its expert
    full is dropped. Padding tokens take no slot.

    Args:
      gates: router probabilities, float32.
      k: experts a token, at most E.
      capacity: C, slots an expert has in each group.
      batch_priority: order tokens by their largest gate (BPR) in place of their position.
      valid: False for padding; all True if not given.

    Raises:
      ValueError: `k` is not in [1, E] or `capacity` is below 1.
    """
    num_groups, num_tokens, num_experts = gates.shape
    if not 1 <= k <= num_experts:
        raise ValueError(f"k must be between 1 and E = {num_experts}, not {k}")
    if capacity < 1:
        raise ValueError(f"capacity must be at least 1, not {capacity}")
    weight, expert = jax.lax.top_k(gates, k)
    if valid is not None:
        weight = jnp.where(valid[..., None], weight, 0)
    # The sentinel E keeps padding out of every expert's queue.
    queue = expert if valid is None else jnp.where(valid[..., None], expert, num_experts)
    if batch_priority:
        order = jnp.argsort(-jax.lax.stop_gradient(weight[..., 0]), axis=-1, stable=True)
        queue = jnp.take_along_axis(queue, order[..., None], axis=1)
    # Choice-major, so that first choices precede second ones.
    ranks = _rank_in_queue(queue.swapaxes(1, 2).reshape(num_groups, k * num_tokens), num_experts)
    slot = ranks.reshape(num_groups, k, num_tokens).swapaxes(1, 2)
    if batch_priority:
        slot = jnp.take_along_axis(slot, jnp.argsort(order, axis=-1)[..., None], axis=1)
    if valid is not None:
        slot = jnp.where(valid[..., None], slot, capacity)
    return Assignment(expert=expert, slot=slot, weight=weight)


def _rank_in_queue(expert: Int[Array, "G N"], num_experts: int) -> Int[Array, "G N"]:
    """For each entry, how many earlier entries of its group name the same expert.

    A stable sort brings equal experts together; an entry's rank is its place less its expert's
    first place. Costs N·log N whatever E is, where a one-hot cumulative sum costs N·E.
    """
    num = expert.shape[-1]
    place = jnp.broadcast_to(jnp.arange(num, dtype=jnp.int32), expert.shape)
    by_expert, order = jax.lax.sort((expert, place), dimension=-1, num_keys=1, is_stable=True)
    start = jax.vmap(lambda row: jnp.searchsorted(row, jnp.arange(num_experts + 1)))(by_expert)
    rank = place - jnp.take_along_axis(start.astype(jnp.int32), by_expert, axis=-1)
    # A permutation is inverted by sorting it: cheaper than a scatter on accelerators.
    return jax.lax.sort((order, rank), dimension=-1, num_keys=1)[1]
