"""An assignment to expert buffers and back: `x (G,M,D) -> buffers -> y (G,M,D)`.

Three dispatchers with one answer:

* `einsum` multiplies by one-hot tensors: the readable reference, its cost grows with M·E·C.
* `gather` moves rows by index into buffers of C slots an expert and group.
* `dropless` moves rows by index into one long buffer, sorted by expert, with no slot that nobody
  has; the experts run as grouped products (`vimoe_jax.moe.products.grouped`).

Where rows move by index, each token knows its K slots and each slot its token, so that the backward
pass is made of gathers too (the automatic one would scatter-add).
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int

from vimoe_jax.base import struct
from vimoe_jax.moe import exchange
from vimoe_jax.moe.experts import Experts
from vimoe_jax.moe.products import segments
from vimoe_jax.moe.products.choice import tile_rows
from vimoe_jax.moe.routing import Assignment
from vimoe_jax.parallel.rules import TOKEN_AXES, active_mesh, constrain, spec

# Names, for rematerialisation, of what has come to the experts and of what has come back: while
# these are kept, the backward pass exchanges nothing again.
MOVED = ("moe_dispatched", "moe_returned")


@struct.dataclass
class EinsumDispatcher:
    """Dispatch and combine as products with one-hot tensors (V-MoE, Mesh TensorFlow MoE).

    Attributes:
      dispatch: 1 where a token's choice sits in a slot.
      combine: the combine weight there.
    """

    dispatch: Float[Array, "G M E C"]
    combine: Float[Array, "G M E C"]

    @classmethod
    def create(cls, a: Assignment, num_experts: int, capacity: int) -> EinsumDispatcher:
        """Builds the one-hot tensors; a slot beyond the capacity has none, so it is dropped."""
        expert = jax.nn.one_hot(a.expert, num_experts, dtype=a.weight.dtype)
        slot = jax.nn.one_hot(a.slot, capacity, dtype=a.weight.dtype)
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


@struct.dataclass
class GatherDispatcher:
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
    def create(cls, a: Assignment, num_experts: int, capacity: int) -> GatherDispatcher:
        """Builds the two index tables; only integers are scattered, and only here."""
        rows = num_experts * capacity
        kept = a.slot < capacity
        slot_of_choice = jnp.where(kept, a.expert * capacity + a.slot, rows).astype(jnp.int32)
        weight = jnp.where(kept, a.weight, 0)
        return cls(slot_of_choice, _invert(slot_of_choice, rows), weight, num_experts)

    def to_experts(self, x: Float[Array, "G M D"]) -> Float[Array, "G E C D"]:
        """Fills the buffers; slots that no token has are zero."""
        flat = _dispatch(x, self.slot_of_choice, self.choice_of_slot)
        return flat.reshape(x.shape[0], self.num_experts, -1, x.shape[-1])

    def from_experts(self, out: Float[Array, "G E C D"]) -> Float[Array, "G M D"]:
        """Sums each token's expert outputs by weight, in float32."""
        flat = out.reshape(out.shape[0], -1, out.shape[-1])
        return _combine(flat, self.weight, self.slot_of_choice, self.choice_of_slot)


@struct.dataclass
class DroplessDispatcher:
    """Rows sorted by expert, of all groups together; honours drops, but needs no capacity.

    Attributes:
      row_of_choice: row that a choice sits in, or R if dropped; all groups as one.
      choice_of_row: choice (token·K + k) that a row holds, or T·K if none.
      weight: combine weights, 0 where dropped.
      segments: which rows belong to which expert.
    """

    row_of_choice: Int[Array, "1 T K"]
    choice_of_row: Int[Array, "1 R"]
    weight: Float[Array, "1 T K"]
    segments: segments.Segments

    @classmethod
    def create(
        cls, a: Assignment, num_experts: int, capacity: int, name: segments.Backend
    ) -> DroplessDispatcher:
        """Lays the rows out for what `name` runs on: by expert, then group, then slot."""
        k = a.expert.shape[-1]
        tile = tile_rows(a.expert.size, num_experts, name)
        row, layout = _sorted_rows(a, num_experts, capacity, tile)
        row = row.reshape(1, -1, k)
        weight = jnp.where(a.slot < capacity, a.weight, 0).reshape(1, -1, k)
        return cls(row, _invert(row, layout.expert.shape[0] * tile), weight, layout)

    def run(self, experts: Experts, x: Float[Array, "G M D"]) -> Float[Array, "G M O"]:
        """Every kept choice through its expert, summed by weight in float32."""
        flat = _dispatch(x.reshape(1, -1, x.shape[-1]), self.row_of_choice, self.choice_of_row)
        out = experts.rows(flat[0], self.segments)
        y = _combine(out[None], self.weight, self.row_of_choice, self.choice_of_row)
        return y.reshape(*x.shape[:2], -1)


def _sorted_rows(
    a: Assignment, num_experts: int, capacity: int, tile: int
) -> tuple[Int[Array, "G M K"], segments.Segments]:
    """The row of each choice among all groups' choices sorted by expert, R if dropped; the layout.

    Slots that are taken are the first ones, so that no sort is needed: a row is its expert's start,
    plus what earlier groups send there, plus the slot.
    """
    rows = segments.num_rows(a.expert.size, num_experts, tile)
    kept = a.slot < capacity
    chosen = jax.nn.one_hot(a.expert, num_experts, dtype=jnp.int32) * kept[..., None]
    count = chosen.sum((1, 2))  # (G, E)
    layout = segments.Segments.create(count.sum(0), rows, tile)
    first = layout.starts + jnp.cumsum(count, 0) - count
    row = jnp.sum(chosen * first[:, None, None], -1) + a.slot
    return jnp.where(kept, row, rows).astype(jnp.int32), layout


def _invert(row: Int[Array, "G M K"], rows: int) -> Int[Array, "G R"]:
    """For each row the choice (token·K + k) it holds, or M·K if none."""
    flat = row.reshape(row.shape[0], -1)
    num = flat.shape[1]

    def invert(row: Int[Array, "MK"]) -> Int[Array, "R"]:
        empty = jnp.full((rows,), num, jnp.int32)
        return empty.at[row].set(jnp.arange(num, dtype=jnp.int32), mode="drop")

    return jax.vmap(invert)(flat)


def _rows(table: Float[Array, "G N D"], index: Int[Array, "G *any"]) -> Float[Array, "G *any D"]:
    """Gathers rows within each group; an index of N or more gives a row of zeros."""
    flat = index.reshape(index.shape[0], -1)
    rows = jax.vmap(lambda t, i: jnp.take(t, i, axis=0, mode="fill", fill_value=0))(table, flat)
    return rows.reshape(*index.shape, table.shape[-1])


@jax.custom_vjp
def _dispatch(
    x: Float[Array, "G M D"],
    slot_of_choice: Int[Array, "G M K"],
    choice_of_slot: Int[Array, "G EC"],
) -> Float[Array, "G EC D"]:
    # The sentinel M·K divides to M, which is out of range: a zero row.
    return _rows(x, choice_of_slot // slot_of_choice.shape[-1])


def _dispatch_fwd(x, slot_of_choice, choice_of_slot):
    return _dispatch(x, slot_of_choice, choice_of_slot), slot_of_choice


def _dispatch_bwd(slot_of_choice, d_buffers):
    # A token's gradient is the sum over its own K slots: a gather, where autodiff would scatter.
    d_x = _rows(d_buffers, slot_of_choice).astype(jnp.float32).sum(2)
    return d_x.astype(d_buffers.dtype), None, None


_dispatch.defvjp(_dispatch_fwd, _dispatch_bwd)


@jax.custom_vjp
def _combine(
    out: Float[Array, "G EC D"],
    weight: Float[Array, "G M K"],
    slot_of_choice: Int[Array, "G M K"],
    choice_of_slot: Int[Array, "G EC"],
) -> Float[Array, "G M D"]:
    rows = _rows(out, slot_of_choice)
    y = jnp.einsum("gmk,gmkd->gmd", weight, rows, preferred_element_type=jnp.float32)
    return y.astype(out.dtype)


def _combine_fwd(out, weight, slot_of_choice, choice_of_slot):
    y = _combine(out, weight, slot_of_choice, choice_of_slot)
    return y, (out, weight, slot_of_choice, choice_of_slot)


def _combine_bwd(saved, d_y):
    out, weight, slot_of_choice, choice_of_slot = saved
    k = slot_of_choice.shape[-1]
    rows = _rows(out, slot_of_choice)
    d_weight = jnp.einsum("gmd,gmkd->gmk", d_y, rows, preferred_element_type=jnp.float32)
    flat = weight.reshape(weight.shape[0], -1, 1)
    d_out = _rows(d_y, choice_of_slot // k).astype(jnp.float32) * _rows(flat, choice_of_slot)
    return d_out.astype(out.dtype), d_weight.astype(weight.dtype), None, None


_combine.defvjp(_combine_fwd, _combine_bwd)


Dispatcher = EinsumDispatcher | GatherDispatcher
_DISPATCHERS = {"einsum": EinsumDispatcher, "gather": GatherDispatcher}


def create(name: str, assignment: Assignment, num_experts: int, capacity: int) -> Dispatcher:
    """The dispatcher into buffers of that name, "einsum" or "gather", for an assignment."""
    return _DISPATCHERS[name].create(assignment, num_experts, capacity)


def through_experts(
    name: str,
    assignment: Assignment,
    experts: Experts,
    x: Float[Array, "G M D"],
    num_experts: int,
    capacity: int,
    exchange_factor: float = 2.0,
) -> Float[Array, "G M O"]:
    """Tokens through their experts and back, by the dispatcher of that name.

    On Hopper GPUs "gather" runs as "dropless" does: the same choices are dropped, but slots that
    stayed empty are not multiplied. `exchange_factor` is what "dropless" gives `exchange.slots`.
    """
    mesh = active_mesh()
    if name == "gather" and experts.backend() == "hopper":
        name, exchange_factor = "dropless", 0.0  # one round: capacity bounds what is sent
    if name == "dropless" and mesh is None:
        return _local(*nnx.split(experts), assignment, x, num_experts, capacity)
    if name == "dropless":
        return _on_mesh(assignment, experts, x, num_experts, capacity, mesh, exchange_factor)
    tokens = create(name, assignment, num_experts, capacity)
    # The pair of constraints around the experts is the all-to-all of expert parallelism.
    buffers = constrain(tokens.to_experts(x), ("group", None, None, None))
    buffers = constrain(buffers, ("expert_group", "experts", None, None))
    buffers = checkpoint_name(buffers, MOVED[0])
    out = constrain(experts(buffers), ("expert_group", "experts", None, None))
    out = checkpoint_name(constrain(out, ("group", None, None, None)), MOVED[1])
    return constrain(tokens.from_experts(out), ("group", None, None))


def _local(graph, state, assignment, x, num_experts, capacity):
    """Dropless dispatch of a device's tokens to experts that are all on it."""

    def sorted_rows(state, assignment: Assignment, x: jax.Array) -> jax.Array:
        experts = nnx.merge(graph, state)
        tokens = DroplessDispatcher.create(assignment, num_experts, capacity, experts.backend())
        return tokens.run(experts, x)

    @jax.custom_vjp
    def local(state, assignment: Assignment, x: jax.Array) -> jax.Array:
        weight = assignment.weight  # where all have room, slots need not be known at all
        if capacity < x.shape[1]:
            weight = jnp.where(assignment.slot < capacity, weight, 0)
        # Of each token for each expert; K terms added one by one, which fuse into what uses them.
        each = sum(
            weight[..., i, None] * jax.nn.one_hot(assignment.expert[..., i], num_experts)
            for i in range(weight.shape[-1])
        ).reshape(-1, num_experts)
        y = nnx.merge(graph, state).few(x.reshape(-1, x.shape[-1]), each)
        if y is None:
            return sorted_rows(state, assignment, x)
        return y.reshape(*x.shape[:2], -1)

    # Under differentiation, the way for few tokens is not taken.
    local.defvjp(lambda *args: jax.vjp(sorted_rows, *args), lambda vjp, d_y: vjp(d_y))
    return local(state, assignment, x)


def _on_mesh(assignment, experts, x, num_experts, capacity, mesh, factor):
    """Dropless dispatch on a mesh: `_local` or `_exchanged` on each device's groups and weights."""
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

    def padded(a: jax.Array, value: int = 0) -> jax.Array:
        pads = [(0, padding)] + [(0, 0)] * (a.ndim - 1)
        return jnp.pad(a, pads, constant_values=value) if padding else a

    given = Assignment(
        padded(assignment.expert), padded(assignment.slot, capacity), padded(assignment.weight)
    )
    expert_split, hidden_split, _ = spec(("experts", "mlp", None), experts.w_out.shape, mesh)

    def device(state, assignment: Assignment, x: jax.Array) -> jax.Array:
        if hidden_split and "b_out" in state:
            first = jax.lax.axis_index("tensor") == 0  # one of those whose results are summed
            state["b_out"] = state["b_out"].replace(state["b_out"][...] * first)
        if expert_split:
            parts = exchange.parts(mesh)
            y = _exchanged(graph, state, assignment, x, num_experts, capacity, factor, parts)
        else:
            y = _local(graph, state, assignment, x, num_experts, capacity)
        return jax.lax.psum(y, "tensor") if hidden_split else y

    y = jax.shard_map(
        device, mesh=mesh, in_specs=(specs, groups, groups), out_specs=groups, check_vma=False
    )(state, given, padded(x))
    return y[: x.shape[0]]


def _exchanged(graph, state, assignment, x, num_experts, capacity, factor, parts):
    """Dropless dispatch of a device's tokens to experts that are spread over the axis `expert`."""
    num_groups, num_tokens, k = assignment.expert.shape
    row, layout = _sorted_rows(assignment, num_experts, capacity, tile=1)
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
        choice = _invert(place, devices * slots)
        sent = _dispatch(x, place, choice)[0]
        rows = checkpoint_name(plan.send(sent, number), MOVED[0]).reshape(devices, slots, -1)
        tokens = DroplessDispatcher.create(plan.received(number), here, slots, experts.backend())
        out = tokens.run(experts, rows).reshape(devices * slots, -1)
        out = checkpoint_name(plan.send(out, number, back=True), MOVED[1])
        return _combine(out[None], weight, place, choice)

    args = (state, weight, x.reshape(1, -1, x.shape[-1]))
    tables = (row.reshape(1, -1, k), plan)
    if slots >= bound:
        y = run(0, args, tables)
    else:
        y = exchange.in_rounds(run, args, tables, plan.rounds(TOKEN_AXES))
    return y.reshape(*x.shape[:2], -1)
