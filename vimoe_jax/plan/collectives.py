"""What a compiled program sends over which mesh axes: a small reader of HLO text.

`collectives(compiled.as_text(), mesh)` lists every collective operation that the program executes,
with its axes, its bytes and how often it runs in a call.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import re
from collections.abc import Iterator

import numpy as np
from jax.sharding import Mesh

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
      name: where it comes from, by JAX's name stack ("" if not told).
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
        """Bytes that a device sends in all runs, if each part is sent no more often than needed."""
        others = (self.group - 1) / self.group
        factor = {"all-reduce": 2 * others, "collective-permute": 1, "collective-broadcast": 1}
        return round(self.count * self.bytes * factor.get(self.kind, others))


def collectives(hlo_text: str, mesh: Mesh) -> list[Collective]:
    """The collective operations of a program compiled for a mesh, as they come in the text.

    An operation on several arrays is listed once for each of them (the pieces that an all-to-all
    exchanges are one array); one among groups of a single device, which sends nothing, is left out.

    Args:
      hlo_text: `jax.jit(f).lower(…).compile().as_text()`.
      mesh: whose devices the program was compiled for, all of them.

    Raises:
      ValueError: a form of replica groups that is not known.
    """
    module = _Module(hlo_text)
    found = []
    for instruction, count, in_loop in module.executed():
        kind = instruction.kind.removesuffix("-start")
        if kind not in KINDS:
            continue
        pairs, group = _pairs(instruction.text, mesh.size)
        if group == 1:
            continue
        axes = _axes(pairs, mesh)
        for array, size in module.arrays(instruction, kind):
            name = re.search(r'op_name="([^"]*)"', instruction.text)
            found.append(
                Collective(kind, axes, size, array, in_loop, count, group, name[1] if name else "")
            )
    return found


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
    # An axis that is used in part is cut where the part begins and ends.
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


# --- the text ------------------------------------------------------------------------------------

_INSTRUCTION = re.compile(r"^\s*(?:ROOT )?%?([\w.\-]+) = (.*)$")
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{\s*$")
_CALLED = re.compile(
    r"\b(body|condition|calls|to_apply|branch_computations|true_computation|false_computation)="
    r"(\{[^}]*\}|%?[\w.\-]+)"
)
_ARRAY = re.compile(r"\b(pred|token|[a-z]+\d+\w*)\[([\d,]*)\]")


@dataclasses.dataclass(frozen=True)
class _Instruction:
    """`%name = type kind(operands), attributes`."""

    name: str
    type: str
    kind: str
    text: str  # from the operands on


class _Module:
    """An HLO module's computations by name."""

    def __init__(self, text: str):
        self._computations: dict[str, list[_Instruction]] = {}
        self._types: dict[str, str] = {}
        self._entry = ""
        inside: list[_Instruction] | None = None
        for line in text.splitlines():
            if found := _COMPUTATION.match(line):
                inside = self._computations[found[2]] = []
                if found[1]:
                    self._entry = found[2]
            elif line.startswith("}"):
                inside = None
            elif inside is not None and (found := _INSTRUCTION.match(line)):
                instruction = _parse(found[1], found[2])
                inside.append(instruction)
                self._types[instruction.name] = instruction.type

    def executed(self) -> Iterator[tuple[_Instruction, int, bool]]:
        """Every instruction reached from the entry, how often it runs, whether in a loop."""
        yield from self._executed(self._entry, 1, False)

    def _executed(self, name: str, count: int, in_loop: bool):
        for instruction in self._computations.get(name, ()):
            yield instruction, count, in_loop
            if instruction.kind in ("async-update", "async-done"):
                continue
            loop = instruction.kind == "while"
            trips = re.search(r'"known_trip_count":\{"n":"(\d+)"', instruction.text)
            rounds = count * int(trips[1]) if loop and trips else count
            for _, called in _CALLED.findall(instruction.text):
                for computation in re.findall(r"[\w.\-]+", called):
                    yield from self._executed(computation, rounds, in_loop or loop)

    def arrays(self, instruction: _Instruction, kind: str) -> list[tuple[tuple[int, ...], int]]:
        """Shape and `Collective.bytes` of each array of a collective operation."""
        operands = re.findall(r"%([\w.\-]+)", instruction.text.partition(")")[0])
        given = [a for name in operands for a in _ARRAY.findall(self._types.get(name, ""))]
        made = _ARRAY.findall(instruction.type)
        if len(made) > len(given):  # an asynchronous start: (operands, results, …)
            made = made[len(given) : 2 * len(given)]
        if kind == "all-to-all" and len(made) > 1:
            return [((len(made), *_shape(made[0])), sum(_bytes(a) for a in made))]
        if kind == "ragged-all-to-all":
            given = given[: len(made)]
        pairs = zip(given, made, strict=True)
        return [(_shape(m), max(_bytes(g), _bytes(m))) for g, m in pairs]


def _parse(name: str, rest: str) -> _Instruction:
    """Splits what stands right of the equals sign; a tuple's type may hold parentheses itself."""
    end = depth = 0
    while end < len(rest):  # to the first space that is in no parenthesis
        if rest[end] == " " and depth == 0:
            break
        depth += (rest[end] == "(") - (rest[end] == ")")
        end += 1
    kind, _, text = rest[end + 1 :].partition("(")
    return _Instruction(name, rest[:end], kind, text)


def _shape(array: tuple[str, str]) -> tuple[int, ...]:
    return tuple(_ints(array[1]))


def _bytes(array: tuple[str, str]) -> int:
    bits = 8 if array[0] == "pred" else int((re.search(r"\d+", array[0]) or "0")[0])
    return math.ceil(math.prod(_shape(array)) * bits / 8)
