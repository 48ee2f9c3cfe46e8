"""What one device does in a call of a compiled program: arithmetic, and traffic with its memory.

`compiled.cost_analysis()` counts the body of a loop once, whatever its length; a scan over layers
would look like one layer. Here every operation counts as often as it runs.
"""

from __future__ import annotations

import math
import re

import numpy as np

from vimoe_jax.plan.collectives import KINDS
from vimoe_jax.plan.hlo import Instruction, Module

# What moves no bytes: names for what is there already, or the end of what was started before.
_FREE = {
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional",
    "call", "async-start", "after-all", "partition-id", "replica-id", "opt-barrier",
    "iota", "domain",
}  # fmt: skip


def flops(module: Module) -> float:
    """FLOPs of all matrix products, two a multiplication with addition."""
    total = 0.0
    for computation, i, count, _, _ in module.executed():
        if i.kind in ("dot", "convolution"):
            scope = module.computations[computation]
            left, right = (scope[name].arrays[0].shape for name in i.operands[:2])
            of = dot_flops if i.kind == "dot" else convolution_flops
            total += count * of(i, left, right)
    return total


def dot_flops(i: Instruction, left: tuple[int, ...], right: tuple[int, ...]) -> float:
    """2 × results × length of the sums."""
    del right
    axes = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", i.text)
    length = math.prod(left[int(a)] for a in axes[1].split(",") if a) if axes else 1
    return 2.0 * math.prod(i.arrays[0].shape) * length


def convolution_flops(i: Instruction, left: tuple[int, ...], right: tuple[int, ...]) -> float:
    """Products with an input, not with its padding: TPU programs write batched products so.

    A batch axis becomes a window as long as the batch, dilated or padded so that each result sees
    its own element only.
    """
    result = i.arrays[0].shape
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", i.text)
    if labels is None:
        raise ValueError(f"{i.name}: a convolution without dim_labels")
    lhs, rhs, out = labels.groups()
    fields: dict[str, str] = {}
    if window := re.search(r"window=\{([^}]*)\}", i.text):
        fields = dict(part.split("=") for part in window[1].split())
    total = 2.0 * result[out.index("b")] * result[out.index("f")] * right[rhs.index("i")]
    if groups := re.search(r"batch_group_count=(\d+)", i.text):
        total /= int(groups[1])
    for axis in range(sum(c.isdigit() for c in out)):

        def at(name: str, default: str, axis: int = axis) -> str:
            return fields[name].split("x")[axis] if name in fields else default

        low = int(at("pad", "0_0").split("_")[0])
        dilation = int(at("lhs_dilate", "1"))
        spread = (left[lhs.index(str(axis))] - 1) * dilation + 1
        places = np.arange(result[out.index(str(axis))])[:, None] * int(at("stride", "1")) - low
        places = places + np.arange(right[rhs.index(str(axis))]) * int(at("rhs_dilate", "1"))
        total *= np.sum((places >= 0) & (places < spread) & (places % dilation == 0))
    return total


def memory_bytes(module: Module) -> float:
    """Bytes read from and written to the main memory, each operation by itself.

    A fusion reads its operands and writes its results once; what is sliced out of an operand counts
    as large as the slice, what is written into a larger array as large as what is written.
    """
    total = 0.0
    for computation, i, count, _, fused in module.executed():
        if fused or i.kind in _FREE or i.kind.endswith(("-done", "-update")):
            continue
        if i.kind == "custom-call" and '"AllocateBuffer"' in i.text:
            continue
        total += count * (_read(module, computation, i) + _written(module, computation, i))
    return total


def _far(i: Instruction) -> int:
    return sum(a.bytes for a in i.arrays if not a.near)


def _read(module: Module, computation: str, i: Instruction) -> float:
    scope = module.computations[computation]
    if i.kind in ("dynamic-slice", "slice", "gather"):
        return _far(i)
    operands = [scope[name] for name in i.operands if name in scope]
    if i.kind == "dynamic-update-slice":
        operands = operands[1:2]
    if i.kind != "fusion":
        return sum(_far(o) for o in operands)
    inner = module.computations[i.called("calls")]
    parameters = {int(p.text.partition(")")[0]): p for p in inner.values() if p.kind == "parameter"}
    return sum(
        min(_far(o), _used(inner, parameters[n])) for n, o in enumerate(operands) if n in parameters
    )


def _used(inner: dict[str, Instruction], parameter: Instruction) -> float:
    """Bytes of a fusion's parameter that it looks at."""
    total, names = 0.0, [parameter.name]
    while names:
        name = names.pop()
        for user in inner.values():
            if name not in user.operands:
                continue
            if user.kind == "bitcast":
                names.append(user.name)
            elif user.kind in ("dynamic-slice", "slice", "gather") and user.operands[0] == name:
                total += sum(a.bytes for a in user.arrays)
            elif user.kind != "dynamic-update-slice" or user.operands[0] != name:
                return math.inf
    return total


def _written(module: Module, computation: str, i: Instruction) -> int:
    scope = module.computations[computation]
    if i.kind == "dynamic-update-slice":
        return _far(scope[i.operands[1]])
    kind = i.kind.removesuffix("-start")
    if i.kind.endswith("-start") and (kind in KINDS or kind == "copy"):
        arrays = i.arrays  # operands, results and handles: as much comes out as went in
        return arrays[0 if kind == "copy" else len(arrays) // 2].bytes * (not arrays[0].near)
    if i.kind != "fusion":
        return _far(i)
    inner, root = module.computations[i.called("calls")], module.root(i.called("calls"))
    parts = [inner[name] for name in root.operands] if root.kind == "tuple" else [root]
    total = 0
    for array, part in zip(i.arrays, parts, strict=False):
        while part.kind == "bitcast":
            part = inner[part.operands[0]]
        if part.kind == "dynamic-update-slice":
            total += sum(a.bytes for a in inner[part.operands[1]].arrays)
        else:
            total += 0 if array.near else array.bytes
    return total
