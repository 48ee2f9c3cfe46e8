"""What a compiled program sends over which mesh axes.

`collectives(compiled.as_text(), mesh)` lists every collective operation that the program executes,
with its axes, its bytes and how often it runs in a call.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import re

import numpy as np
from jax.sharding import Mesh

from vimoe_jax.plan.hlo import Instruction, Module

KINDS = (
    "all-gather",
    "all-reduce",
    "all-to-all",
    "collective-broadcast",
    "collective-permute",
    "ragged-all-to-all",
    "reduce-scatter",
)


@dataclasses.dataclass(frozen=True)
class Collective:
    """One array that a collective operation makes on each device.

    Attributes:
      kind: of `KINDS`; an operation that starts one asynchronously counts as the operation.
      axes: mesh axes that it runs over, in the mesh's order.
      bytes: of the whole array that a group of devices makes or gives up: on each device, the
        larger of what goes in and what comes out.
      shape: of what comes out on one device.
      in_loop: whether it is inside a loop (a scan over layers, microbatches or chunks).
      count: times it runs in one call; a loop of unknown length counts as one round.
      group: devices that exchange with each other.
      name: where it comes from, by JAX's name stack ("" if unknown).
    """

    kind: str
    axes: tuple[str, ...]
    bytes: int
    shape: tuple[int, ...]
    in_loop: bool
    count: int
    group: int
    name: str

    @property
    def sent(self) -> int:
        """Bytes that a device sends in all runs, if each piece is sent as rarely as possible."""
        others = (self.group - 1) / self.group
        factor = {"all-reduce": 2 * others, "collective-permute": 1, "collective-broadcast": 1}
        return round(self.count * self.bytes * factor.get(self.kind, others))


def collectives(program: str | Module, mesh: Mesh) -> list[Collective]:
    """The collective operations of a program compiled for a mesh, as they come in the text.

    An operation on several arrays is listed once for each of them (the pieces that an all-to-all
    exchanges are one array); one among groups of a single device, which sends nothing, is left out.

    Args:
      program: `jax.jit(f).lower(…).compile().as_text()`, or the module read from it.
      mesh: whose devices the program was compiled for, all of them.

    Raises:
      ValueError: a form of replica groups that is not known.
    """
    module = Module(program) if isinstance(program, str) else program
    found = []
    for computation, instruction, count, in_loop, _ in module.executed(conditions=True):
        kind = instruction.kind.removesuffix("-start")
        if kind not in KINDS:
            continue
        pairs, group = _pairs(instruction.text, mesh.size)
        if group == 1:
            continue
        axes = _axes(pairs, mesh)
        found += [
            Collective(kind, axes, size, shape, in_loop, count, group, instruction.op_name)
            for shape, size in _exchanged(module.computations[computation], instruction, kind)
        ]
    return found


def _exchanged(
    scope: dict[str, Instruction], instruction: Instruction, kind: str
) -> list[tuple[tuple[int, ...], int]]:
    """Shape and `Collective.bytes` of each array of a collective operation."""
    given = [a for name in instruction.operands if name in scope for a in scope[name].arrays]
    made = instruction.arrays
    if len(made) > len(given):  # an asynchronous start: (operands, results, …)
        made = made[len(given) : 2 * len(given)]
    if kind == "all-to-all" and len(made) > 1:
        return [((len(made), *made[0].shape), sum(a.bytes for a in made))]
    if kind == "ragged-all-to-all":
        given = given[: len(made)]
    return [(m.shape, max(g.bytes, m.bytes)) for g, m in zip(given, made, strict=True)]


# --- replica groups ------------------------------------------------------------------------------


def _pairs(text: str, devices: int) -> tuple[np.ndarray, int]:
    """(N, 2) pairs of devices that exchange, and the size of a group."""
    if found := re.search(r"source_target_pairs=\{((?:\{\d+,\d+\},?)*)\}", text):
        pairs = np.array([[int(d) for d in p.split(",")] for p in _braced(found[1])]).reshape(-1, 2)
        moved = pairs[pairs[:, 0] != pairs[:, 1]]
        return moved, 2 if len(moved) else 1
    groups = replica_groups(text, devices)
    pairs = [(group[0], other) for group in groups for other in group[1:]]
    return np.array(pairs, int).reshape(-1, 2), max(len(group) for group in groups)


def replica_groups(text: str, devices: int) -> list[list[int]]:
    """The groups of an instruction's `replica_groups=`, in any of the forms that XLA prints.

    Explicit, `{{0,1},{2,3}}` (`{}` is all as one); iota, `[2,4]<=[4,2]T(1,0)`, an arange of the
    second shape, transposed, cut into rows of the first; by axes of a mesh of XLA's own,
    `mesh['a'=2,'b'=4] {'b'}`, where `'b':(2)2` is the part of `b` behind its first factor 2, and
    the mesh may say its devices: `mesh['a'=2,'b'=4], device_ids=([4,2]T(1,0)) {'b'}`.

    Args:
      text: the instruction.
      devices: number of devices.

    Raises:
      ValueError: another form.
    """
    if found := re.search(r"replica_groups=\{((?:\{[\d,]*\},?)*)\}", text):
        explicit = [[int(d) for d in group.split(",")] for group in _braced(found[1])]
        return explicit or [list(range(devices))]
    if found := re.search(r"replica_groups=(\[[\d,]+\]<=\[[\d,]+\](?:T\([\d,]+\))?)", text):
        shape, order = found[1].split("<=")
        return _iota(order).reshape(_ints(shape)).tolist()
    form = r"replica_groups=@?\w*mesh\[([^\]]*)\](?:, *device_ids=\(([^)]*\)?)\))? *\{([^}]*)\}"
    if found := re.search(form, text):
        return _by_mesh_axes(*found.groups())
    raise ValueError(f"replica groups of an unknown form: {text.strip()[:200]}")


def _by_mesh_axes(axes: str, order: str | None, chosen: str) -> list[list[int]]:
    sizes = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", axes)}
    total = math.prod(sizes.values())
    if not order:
        devices = np.arange(total)
    else:
        devices = _iota(order) if order.startswith("[") else np.array(_ints(order))
    parts = [
        (name, int(before or 1), int(length or sizes[name]))
        for name, before, length in re.findall(r"'([^']+)'(?::\((\d+)\)(\d+))?", chosen)
    ]
    # An axis that is used in part is cut where that piece begins and ends.
    factors = []  # (axis, product of its factors before this one, this one)
    for name, size in sizes.items():
        used = [(before, before * length) for part, before, length in parts if part == name]
        edges = sorted({1, size}.union(*used))
        factors += [(name, a, b // a) for a, b in itertools.pairwise(edges)]
    inner = [
        i
        for part, first, length in parts
        for i, (name, before, _) in enumerate(factors)
        if name == part and first <= before < first * length
    ]
    outer = [i for i in range(len(factors)) if i not in inner]
    shape = [size for _, _, size in factors]
    group = math.prod(shape[i] for i in inner)
    return devices.reshape(shape).transpose(outer + inner).reshape(-1, group).tolist()


def _iota(text: str) -> np.ndarray:
    """`[4,2]T(1,0)`: an arange of that shape, transposed, flat."""
    shape, _, order = text.partition("T")
    numbers = np.arange(math.prod(_ints(shape))).reshape(_ints(shape))
    return (numbers.transpose(_ints(order)) if order else numbers).reshape(-1)


def _ints(text: str) -> list[int]:
    return [int(n) for n in re.findall(r"\d+", text)]


def _braced(text: str) -> list[str]:
    return re.findall(r"\{([^{}]+)\}", text)


def _axes(pairs: np.ndarray, mesh: Mesh) -> tuple[str, ...]:
    """The axes along which any pair of devices (by place in the mesh) differs."""
    sizes = tuple(mesh.shape.values())
    first, second = (np.array(np.unravel_index(pairs[:, i], sizes)) for i in (0, 1))
    differ = (first != second).any(1)
    return tuple(axis for axis, d in zip(mesh.axis_names, differ, strict=True) if d)
