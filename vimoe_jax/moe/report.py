"""The MoE report of a layer: its losses, and counts from which load and drops follow.

Everything is a sum or a mean that adds up over microbatches, so that accumulated gradients give the
same numbers as one large batch.
"""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from vimoe_jax.base import struct

AnyArray = jax.Array | np.ndarray  # the latter once it is on the host
Number = AnyArray | np.floating  # NumPy's sums over all axes are scalars


@struct.dataclass
class MoEReport:
    """The MoE report of one layer (or, stacked by a scan, of L layers with a leading axis).

    Attributes:
      losses: unweighted auxiliary losses by name, means over groups.
      routed: choices per token kind and expert, before capacity.
      kept: choices that found a slot.
      tokens: valid tokens per kind.
      unserved: those of them that no expert took.
      entropy: summed entropy of the valid tokens' gates, in nats.
    """

    losses: Mapping[str, Float[AnyArray, "*L"]]
    routed: Float[AnyArray, "*L kinds E"]
    kept: Float[AnyArray, "*L kinds E"]
    tokens: Float[AnyArray, "*L kinds"]
    unserved: Float[AnyArray, "*L kinds"]
    entropy: Float[AnyArray, "*L"]

    def load(self) -> Float[AnyArray, "*L E"]:
        """Each expert's share of all routed choices."""
        per_expert = self.routed.sum(-2)
        return per_expert / per_expert.sum(-1, keepdims=True).clip(1)

    def max_load(self) -> Float[Number, "*L"]:
        """Load of the busiest expert over the mean load: 1 at perfect balance, E at worst."""
        return self.load().max(-1) * self.routed.shape[-1]

    def drop_fraction(self) -> Float[Number, "*L"]:
        """Share of routed choices that found their expert full."""
        routed = self.routed.sum((-2, -1))
        return (routed - self.kept.sum((-2, -1))) / routed.clip(1)

    def drop_fraction_by_kind(self) -> Float[AnyArray, "*L kinds"]:
        """The same for each kind of token; 0 for a kind that no token has."""
        routed = self.routed.sum(-1)
        return (routed - self.kept.sum(-1)) / routed.clip(1)

    def unserved_fraction(self) -> Float[Number, "*L"]:
        """Share of valid tokens that no expert took: only their residual path remains."""
        return self.unserved.sum(-1) / self.tokens.sum(-1).clip(1)

    def mean_entropy(self) -> Float[Number, "*L"]:
        """Mean entropy of a token's gates, in nats."""
        return self.entropy / self.tokens.sum(-1).clip(1)


@jax.named_scope("report")
def collect(
    losses: Mapping[str, Float[Array, ""]],
    gates: Float[Array, "G M E"],
    routed: Float[Array, "G M E"],
    kept: Float[Array, "G M E"],
    valid: Bool[Array, "G M"],
    kind: Int[Array, "G M"],
    num_kinds: int,
) -> MoEReport:
    """Counts one layer's choices; padding tokens count in nothing.

    Args:
      losses: unweighted, by name.
      gates: each token's distribution over experts.
      routed: how often (or, in soft routing, how much) each token was sent to each expert.
      kept: how much of that found a slot.
      valid: False for padding.
      kind: a small integer per token by which the counts are split.
      num_kinds: kinds are in [0, num_kinds).
    """
    gates, routed, kept = jax.lax.stop_gradient((gates, routed, kept))
    mask = valid.astype(jnp.float32)
    by_kind = jax.nn.one_hot(kind, num_kinds, dtype=jnp.float32) * mask[..., None]
    entropy = -jnp.sum(gates * jnp.log(jnp.maximum(gates, 1e-30)), -1)
    return MoEReport(
        losses=losses,
        routed=jnp.einsum("gmt,gme->te", by_kind, routed),
        kept=jnp.einsum("gmt,gme->te", by_kind, kept),
        tokens=by_kind.sum((0, 1)),
        unserved=jnp.einsum("gmt,gm->t", by_kind, (kept.sum(-1) == 0).astype(jnp.float32)),
        entropy=jnp.sum(entropy * mask),
    )
