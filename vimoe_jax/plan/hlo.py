"""A compiled program's text as computations, and how often each instruction runs.

This is the one reader of HLO text: `vimoe_jax.plan.collectives` finds in it what devices send each
other, `vimoe_jax.plan.cost` the arithmetic and the traffic with the memory. TPU programs say less
than others, and the reader finds out what they leave out: loops do not give their length, and a
reduce-scatter is an all-reduce inside a fusion.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections.abc import Iterator
from typing import NamedTuple

_INSTRUCTION = re.compile(r"\s*(ROOT )?%?([\w.\-]+) = (.*)$")
_COMPUTATION = re.compile(r"(ENTRY )?%?([\w.\-]+) \(.*\{\s*$")
_NAME = re.compile(r"[\w.\-]+")
_OPERAND = re.compile(r"%([\w.\-]+)")
_ARRAY = re.compile(r"\b(pred|token|[a-z]+\d+\w*)\[([\d,]*)\](?:\{([^{}]*)\})?")
_CALLED = re.compile(
    r"\b(body|condition|calls|to_apply|branch_computations|true_computation|false_computation)="
    r"(\{[^}]*\}|%?[\w.\-]+)"
)


@dataclasses.dataclass(frozen=True)
class Array:
    """One array of an instruction's type; `near` if it lies in the chip, not in its main memory."""

    shape: tuple[int, ...]
    bytes: int
    near: bool


@dataclasses.dataclass(frozen=True)
class Instruction:
    """`%name = type kind(operands), attributes`.

    Attributes:
      name: unique in its computation.
      type: of its result, as XLA prints it.
      kind: the operation; `reduce-scatter` also for the all-reduce that a TPU program makes one of.
      text: what stands behind the operands' opening parenthesis.
      root: whether its computation returns it.
    """

    name: str
    type: str
    kind: str
    text: str
    root: bool

    @functools.cached_property
    def operands(self) -> tuple[str, ...]:
        """The names of its operands."""
        return tuple(_OPERAND.findall(self.text.partition(")")[0]))

    @functools.cached_property
    def arrays(self) -> tuple[Array, ...]:
        """Its results."""
        return tuple(_array(*found) for found in _ARRAY.findall(self.type))

    @functools.cached_property
    def calls(self) -> tuple[tuple[str, str], ...]:
        """(attribute, computation) for each computation that it runs, in the text's order."""
        if "=%" not in self.text and "={%" not in self.text:  # most call nothing: a search less
            return ()
        return tuple(
            (attribute, computation)
            for attribute, names in _CALLED.findall(self.text)
            for computation in _NAME.findall(names)
        )

    @property
    def op_name(self) -> str:
        """Where it comes from, by JAX's name stack; "" if the program does not say."""
        found = re.search(r'op_name="([^"]*)"', self.text)
        return found[1] if found else ""

    def called(self, attribute: str) -> str:
        """The computation that an attribute names; "" if there is none."""
        return next((name for key, name in self.calls if key == attribute), "")

    def number(self) -> int | None:
        """The value of a scalar integer constant."""
        found = re.match(r"(-?\d+)\)", self.text) if self.kind == "constant" else None
        return int(found[1]) if found else None


class Executed(NamedTuple):
    """An instruction that the program runs.

    Attributes:
      computation: where it stands.
      instruction: itself.
      count: times it runs in one call of the program.
      in_loop: whether it is inside a loop.
      fused: whether it is part of a fusion, or of the function that a reduction applies.
    """

    computation: str
    instruction: Instruction
    count: int
    in_loop: bool
    fused: bool


class Module:
    """Computations by name; each a dict from an instruction's name to it, in order.

    Args:
      text: `jax.jit(f).lower(…).compile().as_text()`.
    """

    def __init__(self, text: str):
        self.computations: dict[str, dict[str, Instruction]] = {}
        self.entry = ""
        inside: dict[str, Instruction] | None = None
        scatter = False
        for line in text.splitlines():
            if inside is not None and (found := _INSTRUCTION.match(line)):
                root, name, rest = found.groups()
                inside[name] = _parse(name, rest, bool(root), scatter)
            elif line.startswith("}"):
                inside = None
            elif found := _COMPUTATION.match(line):
                entry, name = found.groups()
                inside = self.computations[name] = {}
                scatter = name.startswith("all-reduce-scatter")
                self.entry = name if entry else self.entry

    def root(self, computation: str) -> Instruction:
        """What a computation returns."""
        return next(i for i in self.computations[computation].values() if i.root)

    def executed(self, *, conditions: bool = False) -> Iterator[Executed]:
        """Every instruction that the entry reaches, once for each place that reaches it.

        Args:
          conditions: whether to go into the conditions of loops too.
        """
        yield from self._executed(self.entry, 1, False, False, conditions)

    def _executed(
        self, name: str, count: int, in_loop: bool, fused: bool, conditions: bool
    ) -> Iterator[Executed]:
        for i in self.computations.get(name, {}).values():
            yield Executed(name, i, count, in_loop, fused)
            if i.kind in ("async-update", "async-done"):
                continue
            loop = i.kind == "while"
            rounds = count * self.trips(name, i) if loop else count
            for attribute, computation in i.calls:
                if attribute == "condition" and not conditions:
                    continue
                applied = attribute == "to_apply" and i.kind != "call"
                inner = fused or i.kind == "fusion" or applied
                yield from self._executed(computation, rounds, in_loop or loop, inner, conditions)

    def trips(self, computation: str, loop: Instruction) -> int:
        """Rounds of a `while`: as the text says, or by start, step and bound; 1 if unknown."""
        if known := re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.text):
            return int(known[1])
        condition = self.computations.get(loop.called("condition"), {})
        test = next((i for i in condition.values() if i.root), None)
        if test is None or test.kind != "compare" or "direction=LT" not in test.text:
            return 1
        counter, bound = (condition.get(n) for n in test.operands)
        end = bound.number() if bound is not None else None
        if end is None or counter is None or counter.kind != "get-tuple-element":
            return 1
        place = re.search(r"index=(\d+)", counter.text)
        if place is None:
            return 1
        index = int(place[1])
        start = self._start(computation, loop, index)
        step = self._step(loop.called("body"), index)
        return max(0, math.ceil((end - start) / step))

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


def _parse(name: str, rest: str, root: bool, scatter: bool) -> Instruction:
    """Splits what stands right of the equals sign; a tuple's type may hold parentheses itself."""
    end = 0
    if rest.startswith("("):
        depth = 0
        for found in re.finditer(r"[()]", rest):
            depth += 1 if found[0] == "(" else -1
            if depth == 0:
                end = found.end()
                break
    end = rest.find(" ", end)
    kind, _, text = rest[end + 1 :].partition("(")
    if scatter and kind == "all-reduce":
        kind = "reduce-scatter"
    return Instruction(name, rest[:end], kind, text, root)


def _array(dtype: str, dims: str, layout: str) -> Array:
    shape = tuple(int(n) for n in dims.split(",") if n)
    size = math.ceil(math.prod(shape) * _bits(dtype) / 8)
    return Array(shape, size, bool(re.search(r"S\([1-9]", layout)))


def _bits(dtype: str) -> int:
    """Of one element; a token has none."""
    if dtype == "pred":
        return 8
    found = re.search(r"\d+", dtype)
    return int(found[0]) if found else 0
