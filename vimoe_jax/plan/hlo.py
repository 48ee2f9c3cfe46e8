"""A compiled program's text as computations, and how often each instruction runs.

`vimoe_jax.plan.collectives` reads collective operations; this reader is for what they leave
out, operations' arithmetic and their traffic with the memory, and for the two ways in which TPU
programs say less than others: loops do not tell their length, and a reduce-scatter is an all-reduce
inside a fusion.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterator

_INSTRUCTION = re.compile(r"^\s*(ROOT )?%?([\w.\-]+) = (.*)$")
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{\s*$")
_ARRAY = re.compile(r"\b(pred|[a-z]+\d+\w*)\[([\d,]*)\](?:\{([^{}]*)\})?")
_CALLED = re.compile(r"\b(body|calls|to_apply|branch_computations)=(\{[^}]*\}|%?[\w.\-]+)")


@dataclasses.dataclass(frozen=True)
class Array:
    """One array of an instruction's type; `near` if it lies in the chip, not in its main memory."""

    shape: tuple[int, ...]
    bytes: int
    near: bool


@dataclasses.dataclass(frozen=True)
class Instruction:
    """`%name = type kind(operands), attributes`."""

    name: str
    type: str
    kind: str
    operands: tuple[str, ...]
    text: str
    root: bool

    def arrays(self) -> list[Array]:
        """Its results."""
        return [
            Array(shape, math.ceil(math.prod(shape) * bits(dtype) / 8), bool(near))
            for dtype, dims, layout in _ARRAY.findall(self.type)
            for shape in [tuple(int(n) for n in dims.split(",") if n)]
            for near in [re.search(r"S\([1-9]", layout)]
        ]

    def called(self, attribute: str) -> str:
        """The computation that an attribute names."""
        found = re.search(rf"\b{attribute}=%?([\w.\-]+)", self.text)
        return found[1] if found else ""

    def number(self) -> int | None:
        """The value of a scalar integer constant."""
        found = re.match(r"(-?\d+)\)", self.text) if self.kind == "constant" else None
        return int(found[1]) if found else None


def bits(dtype: str) -> int:
    """Of one element."""
    return 8 if dtype == "pred" else int(re.search(r"\d+", dtype)[0])


class Module:
    """Computations by name; each a dict from an instruction's name to it, in order."""

    def __init__(self, text: str):
        self.computations: dict[str, dict[str, Instruction]] = {}
        self.entry = ""
        inside: dict[str, Instruction] | None = None
        for line in text.splitlines():
            if found := _COMPUTATION.match(line):
                inside = self.computations[found[2]] = {}
                self.entry = found[2] if found[1] else self.entry
            elif line.startswith("}"):
                inside = None
            elif inside is not None and (found := _INSTRUCTION.match(line)):
                inside[found[2]] = _parse(found[2], found[3], bool(found[1]))

    def root(self, computation: str) -> Instruction:
        """What a computation returns."""
        return next(i for i in self.computations[computation].values() if i.root)

    def executed(self) -> Iterator[tuple[str, Instruction, int, bool]]:
        """Every instruction that the entry reaches: computation, itself, runs, whether fused."""
        yield from self._executed(self.entry, 1, False)

    def _executed(self, name: str, count: int, fused: bool):
        for i in self.computations.get(name, {}).values():
            yield name, i, count, fused
            if i.kind in ("async-update", "async-done"):
                continue
            rounds = count * self.trips(name, i) if i.kind == "while" else count
            for attribute, called in _CALLED.findall(i.text):
                applied = attribute == "to_apply" and i.kind != "call"
                inner = fused or i.kind == "fusion" or applied
                for computation in re.findall(r"[\w.\-]+", called):
                    yield from self._executed(computation, rounds, inner)

    def trips(self, computation: str, loop: Instruction) -> int:
        """Rounds of a `while`: told, or counted from start, step and bound; else 1."""
        if told := re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.text):
            return int(told[1])
        condition = self.computations.get(loop.called("condition"), {})
        test = next((i for i in condition.values() if i.root), None)
        if test is None or test.kind != "compare" or "direction=LT" not in test.text:
            return 1
        counter, bound = (condition.get(n) for n in test.operands)
        if bound is None or bound.number() is None or counter.kind != "get-tuple-element":
            return 1
        index = int(re.search(r"index=(\d+)", counter.text)[1])
        start = self._start(computation, loop, index)
        step = self._step(loop.called("body"), index)
        return max(0, math.ceil((bound.number() - start) / step))

    def _start(self, computation: str, loop: Instruction, index: int) -> int:
        scope = self.computations[computation]
        first = scope.get(loop.operands[0])
        if first is None or first.kind != "tuple":
            return 0
        value = scope.get(first.operands[index])
        while value is not None and value.kind in ("copy", "bitcast"):
            value = scope.get(value.operands[0])
        return (value.number() or 0) if value is not None else 0

    def _step(self, body: str, index: int) -> int:
        scope, root = self.computations[body], self.root(body)
        value = scope.get(root.operands[index]) if root.kind == "tuple" else None
        if value is None or value.kind != "add":
            return 1
        numbers = [scope[n].number() for n in value.operands if n in scope]
        return next((n for n in numbers if n), 1)


def _parse(name: str, rest: str, root: bool) -> Instruction:
    end = depth = 0
    while end < len(rest) and (rest[end] != " " or depth):
        depth += (rest[end] == "(") - (rest[end] == ")")
        end += 1
    kind, _, text = rest[end + 1 :].partition("(")
    operands = tuple(re.findall(r"%([\w.\-]+)", text.partition(")")[0]))
    return Instruction(name, rest[:end], kind, operands, text, root)


def portable(text: str) -> str:
    """A TPU program's text with every loop's length told and reduce-scatters called so."""
    module, lines, computation = Module(text), [], ""
    for line in text.splitlines():
        if found := _COMPUTATION.match(line):
            computation = found[2]
        if computation.startswith("all-reduce-scatter"):
            line = line.replace(" all-reduce(", " reduce-scatter(")
        if " while(" in line and "known_trip_count" not in line:
            name = _INSTRUCTION.match(line)[2]
            rounds = module.trips(computation, module.computations[computation][name])
            line += f', backend_config={{"known_trip_count":{{"n":"{rounds}"}}}}'
        lines.append(line)
    return "\n".join(lines)
