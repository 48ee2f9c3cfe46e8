"""Mixtures of tokens to the experts, and of their results back (soft MoE)."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Float

from vimoe_jax.moe.experts import Experts
from vimoe_jax.moe.routing import Mixing
from vimoe_jax.parallel.rules import constrain


@dataclasses.dataclass(frozen=True)
class MixingDispatcher:
    """Products with the shares of tokens and slots, which are all there: nothing is looked up."""

    mixing: Mixing

    def run(self, experts: Experts, x: Float[Array, "G M D"]) -> Float[Array, "G M O"]:
        """Every expert on its slots' mixtures; each token's mixture of the results, in float32."""
        buffers = jnp.einsum("gmec,gmd->gecd", self.mixing.dispatch.astype(x.dtype), x)
        buffers = constrain(buffers, ("expert_group", "experts", None, None))
        out = constrain(experts(buffers), ("group", None, None, None))
        combine = self.mixing.combine
        y = jnp.einsum("gmec,gecd->gmd", combine, out, preferred_element_type=jnp.float32)
        return y.astype(out.dtype)
