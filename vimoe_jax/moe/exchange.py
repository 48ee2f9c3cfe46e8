"""Tokens to the devices that hold their experts, and back: what expert parallelism sends.

Every device of the mesh axis `expert` holds E/n experts and its own tokens. Each sorts its choices
by expert, and so by device, cuts each device's list into pieces of S rows, and sends the r-th piece
of every list in round r:

  rows (n·S, D), piece d for device d  --all-to-all-->  rows (n·S, D), piece s from device s

S is a static bound. A list that is longer takes more rounds, so that no token is ever lost; how
many there are is decided while running, and is one as long as the experts are tolerably balanced.
The way back and both ways' gradients are the same exchange.

All of this runs inside `jax.shard_map`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from vimoe_jax.base import struct
from vimoe_jax.moe.routing import Assignment
from vimoe_jax.parallel.rules import AnyMesh

AXIS = "expert"


def parts(mesh: AnyMesh) -> int:
    """In how many parts a piece travels at its true length; 0 if pieces travel padded to S rows.

    XLA on CPU knows no ragged all-to-all. On the GPUs of one process XLA copies with a kernel of
    few threads a part: whole pieces took 380 ms of a step where all-to-all of buffers took 9
    (benchmarks/results.md).
    """
    return int(isinstance(mesh, Mesh) and mesh.devices.flat[0].platform == "tpu")


def slots(choices: int, devices: int, factor: float) -> int:
    """S, the rows that each pair of devices exchanges in a round.

    Args:
      choices: the most that a device may have to send.
      devices: n, along the axis.
      factor: S over an even share of the choices; 0 for as many as there are, in one round.
    """
    share = choices if factor == 0 else -int(-choices * factor // devices)
    return max(1, min(-(-share // 8) * 8, choices))


@struct.dataclass
class Exchange:
    """Who sends how many rows to whom, known to all devices of the axis.

    Attributes:
      sent: choices that each device has for each expert.
      slots: S.
      parts: as `parts` gives it.
    """

    sent: Int[Array, "n E"]
    slots: int = struct.field(pytree_node=False)
    parts: int = struct.field(pytree_node=False)

    @classmethod
    def create(cls, sizes: Int[Array, "E"], slots: int, parts: int) -> Exchange:
        """From the choices that this device has for each expert."""
        return cls(jax.lax.all_gather(sizes, AXIS), slots, parts)

    def rounds(self, axes: tuple[str, ...]) -> Int[Array, ""]:
        """Rounds until all lists are sent, those of the other groups along `axes` too."""
        longest = jax.lax.pmax(self._pairs().max(), axes)
        return -(-longest // self.slots)

    def place(self, row: Int[Array, "*N"], number: Int[Array, ""] | int) -> Int[Array, "*N"]:
        """Where each choice is among the n·S rows that this device sends; n·S if not among them.

        Args:
          row: of each choice among this device's choices sorted by expert; beyond all of them for
            what is not sent at all.
          number: the round.
        """
        sizes = self._pairs()[jax.lax.axis_index(AXIS)]
        ends = jnp.cumsum(sizes)
        device = jnp.sum(row[..., None] >= ends, -1)
        one_hot = jax.nn.one_hot(device, sizes.shape[0], dtype=jnp.int32)
        behind = row - jnp.sum(one_hot * (ends - sizes), -1) - number * self.slots
        now = (device < sizes.shape[0]) & (behind >= 0) & (behind < self.slots)
        nowhere = sizes.shape[0] * self.slots
        return jnp.where(now, device * self.slots + behind, nowhere).astype(jnp.int32)

    def assignment(self, number: Int[Array, ""] | int) -> Assignment:
        """Which of this device's experts each received row is for: n groups of S tokens, K = 1.

        Rows beyond the end of a list have the slot S: they count as dropped.
        """
        n, num_experts = self.sent.shape
        here = num_experts // n
        sizes = jax.lax.dynamic_slice_in_dim(
            self.sent, jax.lax.axis_index(AXIS) * here, here, axis=1
        )
        ends = jnp.cumsum(sizes, 1)
        place = number * self.slots + jnp.arange(self.slots, dtype=jnp.int32)
        expert = jnp.sum(place[:, None] >= ends[:, None], -1)  # (n, S)
        first = jnp.maximum(ends - sizes, number * self.slots)  # of each expert, in this round
        slot = place - jnp.take_along_axis(first, jnp.minimum(expert, here - 1), 1)
        there = expert < here
        return Assignment(
            expert=jnp.where(there, expert, 0)[..., None].astype(jnp.int32),
            slot=jnp.where(there, slot, self.slots)[..., None].astype(jnp.int32),
            weight=there[..., None].astype(jnp.float32),
            num_experts=here,
            capacity=self.slots,
        )

    def send(
        self, rows: Float[Array, "nS D"], number: Int[Array, ""] | int, *, back: bool = False
    ) -> Float[Array, "nS D"]:
        """Piece d of every device to device d; with `back`, what was received to where it was from.

        Rows of a piece beyond its list's end arrive as zeros, or padded as they are.
        """
        if not self.parts:
            return jax.lax.all_to_all(rows, AXIS, 0, 0, tiled=True)
        pairs = jnp.clip(self._pairs() - number * self.slots, 0, self.slots)
        me = jax.lax.axis_index(AXIS)
        there, here = pairs[me], pairs[:, me]
        if back:
            there, here = here, there
        how = self.slots, self.parts
        return _send_ragged(rows, there.astype(jnp.int32), here.astype(jnp.int32), how)

    def _pairs(self) -> Int[Array, "n n"]:
        """Choices from each device for each device."""
        n = self.sent.shape[0]
        return self.sent.reshape(n, n, -1).sum(-1)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _send_ragged(rows, sent, received, how: tuple[int, int]):
    slots, parts = how
    length = -(-slots // parts)
    first = jnp.minimum(jnp.arange(parts, dtype=jnp.int32) * length, slots)  # of each part
    pieces = jnp.arange(sent.shape[0], dtype=jnp.int32)[:, None] * slots
    mine = jax.lax.axis_index(AXIS) * slots

    def cut(sizes: jax.Array) -> jax.Array:
        return jnp.clip(sizes[:, None] - first, 0, length).reshape(-1)

    return jax.lax.ragged_all_to_all(
        rows,
        jnp.zeros_like(rows),
        (pieces + first).reshape(-1),
        cut(sent),
        jnp.broadcast_to(mine + first, (sent.shape[0], parts)).reshape(-1).astype(jnp.int32),
        cut(received),
        axis_name=AXIS,
    )


def _send_ragged_fwd(rows, sent, received, how):
    return _send_ragged(rows, sent, received, how), (sent, received)


def _send_ragged_bwd(how, saved, d_rows):
    sent, received = saved
    return _send_ragged(d_rows, received, sent, how), None, None


_send_ragged.defvjp(_send_ragged_fwd, _send_ragged_bwd)


def sum_over_rounds(
    run: Callable[[Any, Any, Any], jax.Array], args: Any, tables: Any, rounds: Int[Array, ""]
) -> jax.Array:
    """`Σ run(number, args, tables)` over all rounds, differentiable in `args`.

    The first round keeps for the backward pass what it needs. The others, which are rarely run,
    keep nothing: the backward pass runs each again.

    Args:
      run: one round; its collectives may only be such that all devices reach in each round.
      args: a tree of float arrays.
      tables: a tree of arrays without gradients.
      rounds: at least 1, the same on all devices.
    """

    @jax.custom_vjp
    def rest(args, tables, rounds):
        out = jax.eval_shape(run, 0, args, tables)
        zeros = jnp.zeros(out.shape, out.dtype)
        return jax.lax.fori_loop(1, rounds, lambda r, y: y + run(r, args, tables), zeros)

    def forward(args, tables, rounds):
        return rest(args, tables, rounds), (args, tables, rounds)

    def backward(saved, d_y):
        args, tables, rounds = saved

        def body(number, total):
            _, vjp = jax.vjp(lambda args: run(number, args, tables), args)
            return jax.tree.map(lambda t, g: t + g.astype(t.dtype), total, vjp(d_y)[0])

        zeros = jax.tree.map(lambda a: jnp.zeros(a.shape, jnp.float32), args)
        total = jax.lax.fori_loop(1, rounds, body, zeros)
        return jax.tree.map(lambda t, a: t.astype(a.dtype), total, args), None, None

    rest.defvjp(forward, backward)
    return run(0, args, tables) + rest(args, tables, rounds)
