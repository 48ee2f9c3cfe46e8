"""Dispatch by index into buffers of C slots per expert and group."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from vimoe_jax.base import struct
from vimoe_jax.moe.dispatch.buffers import Buffers
from vimoe_jax.moe.dispatch.moves import from_rows, invert, to_rows
from vimoe_jax.moe.routing import Assignment


@struct.dataclass
class GatherDispatcher(Buffers):
    """Dispatch and combine as gathers, in both directions and both passes.

    Attributes:
      slot_of_choice: row of the flat buffers (E·C rows) that a choice sits in, or E·C if dropped.
      choice_of_slot: choice (token·K + k) that a row holds, or M·K if none.
      weight: combine weights, 0 where dropped.
    """

    slot_of_choice: Int[Array, "G M K"]
    choice_of_slot: Int[Array, "G EC"]
    weight: Float[Array, "G M K"]
    num_experts: int = struct.field(pytree_node=False)

    @classmethod
    def create(cls, a: Assignment) -> GatherDispatcher:
        """Builds the two index tables; only integers are scattered, and only here."""
        rows = a.num_experts * a.capacity
        kept = a.slot < a.capacity
        slot_of_choice = jnp.where(kept, a.expert * a.capacity + a.slot, rows).astype(jnp.int32)
        weight = jnp.where(kept, a.weight, 0)
        return cls(slot_of_choice, invert(slot_of_choice, rows), weight, a.num_experts)

    def to_experts(self, x: Float[Array, "G M D"]) -> Float[Array, "G E C D"]:
        """Fills the buffers; slots that no token has are zero."""
        flat = to_rows(x, self.slot_of_choice, self.choice_of_slot)
        return flat.reshape(x.shape[0], self.num_experts, -1, x.shape[-1])

    def from_experts(self, out: Float[Array, "G E C D"]) -> Float[Array, "G M D"]:
        """Sums each token's expert outputs by weight, in float32."""
        flat = out.reshape(out.shape[0], -1, out.shape[-1])
        return from_rows(flat, self.weight, self.slot_of_choice, self.choice_of_slot)
