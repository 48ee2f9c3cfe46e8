"""Dispatch by index into rows sorted by expert: no slot that nobody has, and none is lacking."""

from __future__ import annotations

import dataclasses

from flax import nnx
from jaxtyping import Array, Float

from vimoe_jax.moe.dispatch.on_mesh import run_on_mesh
from vimoe_jax.moe.dispatch.sorted_rows import run_local
from vimoe_jax.moe.experts import Experts
from vimoe_jax.moe.routing import Assignment
from vimoe_jax.parallel.rules import active_mesh


@dataclasses.dataclass(frozen=True)
class DroplessDispatcher:
    """Experts as grouped products; honours the drops of an assignment, but needs no capacity.

    Attributes:
      assignment: of all tokens.
      exchange_factor: what `exchange.slots` gets, where a mesh spreads the experts; 0 for as many
        rows as there may be, in one round.
    """

    assignment: Assignment
    exchange_factor: float = 2.0

    def run(self, experts: Experts, x: Float[Array, "G M D"]) -> Float[Array, "G M O"]:
        """Every kept choice through its expert, summed by weight in float32."""
        mesh = active_mesh()
        if mesh is None:
            return run_local(*nnx.split(experts), self.assignment, x)
        return run_on_mesh(self.assignment, experts, x, mesh, self.exchange_factor)
