"""Each token goes to its K largest gates (V-MoE, Riquelme et al. 2021)."""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from vimoe_jax.moe.routers.base import Gated
from vimoe_jax.moe.routing import Assignment, assign, find_largest, gates_of
from vimoe_jax.parallel.parameters import Buffer


class TopK(Gated):
    """`top_k` of the gates; with `batch_priority`, the surest tokens take their slots first.

    Buffer: `bias` (E,) with a `bias_rate`, moved by `block.rebalance_bias`.
    """

    def variables(self, in_dim: int, *, num_ids: int, rngs: nnx.Rngs) -> dict[str, nnx.Variable]:
        """The matrix of the logits, and the bias."""
        made = super().variables(in_dim, num_ids=num_ids, rngs=rngs)
        if self.options.bias_rate:
            made["bias"] = Buffer(jnp.zeros((self.options.experts,), jnp.float32), axes=(None,))
        return made

    def assign(
        self,
        values: Mapping[str, jax.Array],
        gates: Float[Array, "G M E"],
        valid: Bool[Array, "G M"],
        k: int,
        capacity: int,
    ) -> Assignment:
        """`top_k` with the options' priority and the layer's bias."""
        return top_k(
            gates,
            k,
            capacity,
            batch_priority=self.options.batch_priority,
            valid=valid,
            bias=values.get("bias"),
        )


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
    expert, values = find_largest(scores, k)
    weight = _known_gates_of(gates, expert, values) if bias is None else gates_of(gates, expert)
    priority = jax.lax.stop_gradient(weight.max(-1)) if batch_priority else None
    return assign(expert, weight, num_experts, capacity, priority=priority, valid=valid)


@jax.custom_jvp
def _known_gates_of(gates, expert, values):
    """`gates_of`, where the values are known already."""
    del gates, expert
    return values


@_known_gates_of.defjvp
def _known_gates_jvp(primals, tangents):
    _, expert, values = primals
    return values, gates_of(tangents[0], expert)
