"""Sorted rows on a mesh: each device has its groups and its part of the experts' weights."""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float

from vimoe_jax.moe import exchange
from vimoe_jax.moe.dispatch.moves import MOVED, from_rows, invert, to_rows
from vimoe_jax.moe.dispatch.sorted_rows import SortedRows, run_local, sort_rows
from vimoe_jax.moe.experts import Experts
from vimoe_jax.moe.routing import Assignment
from vimoe_jax.parallel.rules import TOKEN_AXES, AnyMesh, spec


def run_on_mesh(
    assignment: Assignment,
    experts: Experts,
    x: Float[Array, "G M D"],
    mesh: AnyMesh,
    exchange_factor: float,
) -> Float[Array, "G M O"]:
    """`run_local` or `_exchange` on each device's groups and weights."""
    graph, state = nnx.split(experts)
    specs = jax.tree.map(
        lambda p: p.replace(spec(p.get_metadata("axes")[-p.ndim :], p.shape, mesh)),
        state,
        is_leaf=lambda p: isinstance(p, nnx.Variable),
    )
    # Whole groups for every device: where they do not come out even, some get empty ones.
    groups = PartitionSpec(TOKEN_AXES)
    devices = math.prod(mesh.shape[axis] for axis in TOKEN_AXES)
    padding = -x.shape[0] % devices

    def pad(a: jax.Array, value: int = 0) -> jax.Array:
        pads = [(0, padding)] + [(0, 0)] * (a.ndim - 1)
        return jnp.pad(a, pads, constant_values=value) if padding else a

    given = dataclasses.replace(
        assignment,
        expert=pad(assignment.expert),
        slot=pad(assignment.slot, assignment.capacity),
        weight=pad(assignment.weight),
    )
    expert_split, hidden_split, _ = spec(("experts", "mlp", None), experts.w_out.shape, mesh)

    def device(state, assignment: Assignment, x: jax.Array) -> jax.Array:
        if hidden_split and "b_out" in state:
            first = jax.lax.axis_index("tensor") == 0  # one of those whose results are summed
            state["b_out"] = state["b_out"].replace(state["b_out"][...] * first)
        if expert_split:
            parts = exchange.parts(mesh)
            y = _exchange(graph, state, assignment, x, exchange_factor, parts)
        else:
            y = run_local(graph, state, assignment, x)
        return jax.lax.psum(y, "tensor") if hidden_split else y

    y = jax.shard_map(
        device, mesh=mesh, in_specs=(specs, groups, groups), out_specs=groups, check_vma=False
    )(state, given, pad(x))
    return y[: x.shape[0]]


def _exchange(graph, state, assignment: Assignment, x, factor: float, parts: int):
    """A device's tokens through experts that are spread over the axis `expert`."""
    num_experts, capacity = assignment.num_experts, assignment.capacity
    num_groups, num_tokens, k = assignment.expert.shape
    row, layout = sort_rows(assignment, tile=1)
    devices = jax.lax.axis_size(exchange.AXIS)
    here = num_experts // devices
    most = num_groups * min(num_tokens * k, num_experts * capacity)
    # No device gets more from another one than its experts have room for.
    bound = num_groups * min(num_tokens * k, here * capacity)
    slots = min(exchange.slots(most, devices, factor), -(-bound // 8) * 8)
    plan = exchange.Exchange.create(layout.sizes, slots, parts)
    kept = assignment.slot < capacity
    weight = jnp.where(kept, assignment.weight, 0).reshape(1, -1, k)

    def run(number, args, tables):
        (state, weight, x), (row, plan) = args, tables
        experts = nnx.merge(graph, state)
        place = plan.place(row, number)
        choice = invert(place, devices * slots)
        sent = to_rows(x, place, choice)[0]
        rows = checkpoint_name(plan.send(sent, number), MOVED[0]).reshape(devices, slots, -1)
        tokens = SortedRows.create(plan.assignment(number), experts.backend())
        out = tokens.run(experts, rows).reshape(devices * slots, -1)
        out = checkpoint_name(plan.send(out, number, back=True), MOVED[1])
        return from_rows(out[None], weight, place, choice)

    args = (state, weight, x.reshape(1, -1, x.shape[-1]))
    tables = (row.reshape(1, -1, k), plan)
    if slots >= bound:
        y = run(0, args, tables)
    else:
        y = exchange.sum_over_rounds(run, args, tables, plan.rounds(TOKEN_AXES))
    return y.reshape(*x.shape[:2], -1)
