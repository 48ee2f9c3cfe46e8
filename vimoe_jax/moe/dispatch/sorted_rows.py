"""Tokens in one long buffer, sorted by expert: the experts run as grouped products."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from vimoe_jax.base import struct
from vimoe_jax.moe.dispatch.moves import from_rows, invert, to_rows
from vimoe_jax.moe.experts import Experts
from vimoe_jax.moe.products.choice import tile_rows
from vimoe_jax.moe.products.segments import Backend, Segments, num_rows
from vimoe_jax.moe.routing import Assignment


@struct.dataclass
class SortedRows:
    """Tokens in rows sorted by expert, of all groups together.

    Attributes:
      row_of_choice: row that a choice sits in, or R if dropped; all groups as one.
      choice_of_row: choice (token·K + k) that a row holds, or T·K if none.
      weight: combine weights, 0 where dropped.
      segments: which rows belong to which expert.
    """

    row_of_choice: Int[Array, "1 T K"]
    choice_of_row: Int[Array, "1 R"]
    weight: Float[Array, "1 T K"]
    segments: Segments

    @classmethod
    def create(cls, a: Assignment, backend: Backend) -> SortedRows:
        """Lays the rows out for what `backend` runs: by expert, then group, then slot."""
        k = a.expert.shape[-1]
        tile = tile_rows(a.expert.size, a.num_experts, backend)
        row, layout = sort_rows(a, tile)
        row = row.reshape(1, -1, k)
        weight = jnp.where(a.slot < a.capacity, a.weight, 0).reshape(1, -1, k)
        return cls(row, invert(row, layout.expert.shape[0] * tile), weight, layout)

    def run(self, experts: Experts, x: Float[Array, "G M D"]) -> Float[Array, "G M O"]:
        """Every kept choice through its expert, summed by weight in float32."""
        flat = to_rows(x.reshape(1, -1, x.shape[-1]), self.row_of_choice, self.choice_of_row)
        out = experts.rows(flat[0], self.segments)
        y = from_rows(out[None], self.weight, self.row_of_choice, self.choice_of_row)
        return y.reshape(*x.shape[:2], -1)


def sort_rows(a: Assignment, tile: int) -> tuple[Int[Array, "G M K"], Segments]:
    """The row of each choice among all groups' choices sorted by expert, R if dropped; the layout.

    Slots that are taken are the first ones, so that no sort is needed: a row is its expert's start,
    plus what earlier groups send there, plus the slot.
    """
    rows = num_rows(a.expert.size, a.num_experts, tile)
    kept = a.slot < a.capacity
    chosen = jax.nn.one_hot(a.expert, a.num_experts, dtype=jnp.int32) * kept[..., None]
    count = chosen.sum((1, 2))  # (G, E)
    layout = Segments.create(count.sum(0), rows, tile)
    first = layout.starts + jnp.cumsum(count, 0) - count
    row = jnp.sum(chosen * first[:, None, None], -1) + a.slot
    return jnp.where(kept, row, rows).astype(jnp.int32), layout


def run_local(
    graph: nnx.GraphDef, state: nnx.State, assignment: Assignment, x: Float[Array, "G M D"]
) -> Float[Array, "G M O"]:
    """A device's tokens through experts that are all on it, given as `nnx.split` gives them."""

    def sorted_rows(state, assignment: Assignment, x: jax.Array) -> jax.Array:
        experts = nnx.merge(graph, state)
        tokens = SortedRows.create(assignment, experts.backend())
        return tokens.run(experts, x)

    @jax.custom_vjp
    def local(state, assignment: Assignment, x: jax.Array) -> jax.Array:
        weight = assignment.weight  # where all have room, slots need not be known at all
        if assignment.capacity < x.shape[1]:
            weight = jnp.where(assignment.slot < assignment.capacity, weight, 0)
        # Of each token for each expert; K terms added one by one, which fuse into what uses them.
        terms = [
            weight[..., i, None] * jax.nn.one_hot(assignment.expert[..., i], assignment.num_experts)
            for i in range(weight.shape[-1])
        ]
        each = functools.reduce(jnp.add, terms).reshape(-1, assignment.num_experts)
        y = nnx.merge(graph, state).few_rows(x.reshape(-1, x.shape[-1]), each)
        if y is None:
            return sorted_rows(state, assignment, x)
        return y.reshape(*x.shape[:2], -1)

    # Under differentiation, the way for few tokens is not taken.
    local.defvjp(lambda *args: jax.vjp(sorted_rows, *args), lambda vjp, d_y: vjp(d_y))
    return local(state, assignment, x)
