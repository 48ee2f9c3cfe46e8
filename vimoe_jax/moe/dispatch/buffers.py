"""Dispatchers that fill a buffer of C slots per expert and group."""

from __future__ import annotations

import abc

from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

from vimoe_jax.moe.dispatch.moves import MOVED
from vimoe_jax.moe.experts import Experts
from vimoe_jax.parallel.rules import constrain


class Buffers(abc.ABC):
    """The part that these dispatchers share: the experts' products, batched over experts."""

    @abc.abstractmethod
    def to_experts(self, x: Float[Array, "G M D"]) -> Float[Array, "G E C D"]:
        """Fills the buffers; slots that no token has are zero."""

    @abc.abstractmethod
    def from_experts(self, out: Float[Array, "G E C D"]) -> Float[Array, "G M D"]:
        """Sums each token's expert outputs by weight, in float32."""

    def run(self, experts: Experts, x: Float[Array, "G M D"]) -> Float[Array, "G M O"]:
        """Tokens through their experts and back."""
        # The pair of constraints around the experts is the all-to-all of expert parallelism.
        buffers = constrain(self.to_experts(x), ("group", None, None, None))
        buffers = constrain(buffers, ("expert_group", "experts", None, None))
        buffers = checkpoint_name(buffers, MOVED[0])
        out = constrain(experts(buffers), ("expert_group", "experts", None, None))
        out = checkpoint_name(constrain(out, ("group", None, None, None)), MOVED[1])
        return constrain(self.from_experts(out), ("group", None, None))
