"""Every expert takes the tokens it likes best (Zhou et al. 2022)."""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from vimoe_jax.moe.routers.base import Gated
from vimoe_jax.moe.routing import Assignment


class ExpertChoice(Gated):
    """`expert_choice` of the gates; K only says, with the capacity factor, how many slots."""

    def assign(
        self,
        values: Mapping[str, jax.Array],
        gates: Float[Array, "G M E"],
        valid: Bool[Array, "G M"],
        k: int,
        capacity: int,
    ) -> Assignment:
        """Each expert's C largest gates."""
        del values, k
        return expert_choice(gates, capacity, valid=valid)


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
    slot, weight = jnp.where(taken, slot, capacity), jnp.where(taken, gates, 0)
    return Assignment(expert, slot, weight, num_experts, capacity)
