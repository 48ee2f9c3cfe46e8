"""Dispatch by products with one-hot tensors: the readable reference, its cost grows with M·E·C."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vimoe_jax.base import struct
from vimoe_jax.moe.dispatch.buffers import Buffers
from vimoe_jax.moe.routing import Assignment


@struct.dataclass
class EinsumDispatcher(Buffers):
    """Dispatch and combine as products with one-hot tensors (V-MoE, Mesh TensorFlow MoE).

    Attributes:
      dispatch: 1 where a token's choice sits in a slot.
      combine: the combine weight there.
    """

    dispatch: Float[Array, "G M E C"]
    combine: Float[Array, "G M E C"]

    @classmethod
    def create(cls, a: Assignment) -> EinsumDispatcher:
        """Builds the one-hot tensors; a slot beyond the capacity has none, so it is dropped."""
        expert = jax.nn.one_hot(a.expert, a.num_experts, dtype=a.weight.dtype)
        slot = jax.nn.one_hot(a.slot, a.capacity, dtype=a.weight.dtype)
        return cls(
            dispatch=jnp.einsum("gmke,gmkc->gmec", expert, slot),
            combine=jnp.einsum("gmk,gmke,gmkc->gmec", a.weight, expert, slot),
        )

    def to_experts(self, x: Float[Array, "G M D"]) -> Float[Array, "G E C D"]:
        """Fills the buffers; slots that no token has are zero."""
        return jnp.einsum("gmec,gmd->gecd", self.dispatch.astype(x.dtype), x)

    def from_experts(self, out: Float[Array, "G E C D"]) -> Float[Array, "G M D"]:
        """Sums each token's expert outputs by weight, in float32."""
        y = jnp.einsum("gmec,gecd->gmd", self.combine, out, preferred_element_type=jnp.float32)
        return y.astype(out.dtype)
