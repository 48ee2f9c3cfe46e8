"""What an MoE layer reports: its losses, and counts from which load and drops follow.

Everything is a sum or a mean that adds up over microbatches, so that accumulated gradients report
the same numbers as one large batch.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from vimoe_jax.moe.routing import Assignment


@struct.dataclass
class MoEStats:
    """Statistics of one layer (or, stacked by a scan, of L layers with a leading axis).

    Attributes:
      losses: unweighted auxiliary losses by name, means over groups.
      routed: choices per token kind and expert, before capacity.
      kept: choices that found a slot.
      entropy: summed entropy of the valid tokens' gates, in nats.
      tokens: number of valid tokens.
    """

    losses: dict[str, Float[Array, ""]]
    routed: Float[Array, "kinds E"]
    kept: Float[Array, "kinds E"]
    entropy: Float[Array, ""]
    tokens: Float[Array, ""]

    def load(self) -> Float[Array, "*L E"]:
        """Each expert's share of all routed choices."""
        per_expert = self.routed.sum(-2)
        return per_expert / jnp.maximum(per_expert.sum(-1, keepdims=True), 1)

    def drop_fraction(self) -> Float[Array, "*L"]:
        """Share of routed choices that found their expert full."""
        return 1 - self.kept.sum((-2, -1)) / jnp.maximum(self.routed.sum((-2, -1)), 1)

    def mean_entropy(self) -> Float[Array, "*L"]:
        """Mean entropy of a token's gates, in nats."""
        return self.entropy / jnp.maximum(self.tokens, 1)


@jax.named_scope("stats")
def collect(
    losses: dict[str, Float[Array, ""]],
    gates: Float[Array, "G M E"],
    assignment: Assignment,
    capacity: int,
    valid: Bool[Array, "G M"],
    kind: Int[Array, "G M"],
    num_kinds: int,
) -> MoEStats:
    """Counts one layer's choices; padding tokens count in nothing."""
    gates, weight = jax.lax.stop_gradient((gates, valid.astype(jnp.float32)))
    expert = jax.nn.one_hot(assignment.expert, gates.shape[-1], dtype=jnp.float32)
    by_kind = jax.nn.one_hot(kind, num_kinds, dtype=jnp.float32) * weight[..., None]
    kept = (assignment.slot < capacity).astype(jnp.float32)
    entropy = -jnp.sum(gates * jnp.log(jnp.maximum(gates, 1e-30)), -1)
    return MoEStats(
        losses=losses,
        routed=jnp.einsum("gmt,gmke->te", by_kind, expert),
        kept=jnp.einsum("gmt,gmk,gmke->te", by_kind, kept, expert),
        entropy=jnp.sum(entropy * weight),
        tokens=weight.sum(),
    )
