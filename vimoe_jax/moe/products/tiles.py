"""Tile sizes for the grouped kernels: tuned once per shape and device, kept in a file.

The first time a large product meets a shape, each candidate runs a few times on random rows and the
fastest is written to the cache (`$VIMOE_CACHE`, else `~/.cache/vimoe_jax`). Small products take
the default: what tuning could save is less than it costs.
"""

from __future__ import annotations

import functools
import os
import time

import jax
import jax.numpy as jnp
import numpy as np

from vimoe_jax.moe.products import findings, hopper
from vimoe_jax.moe.products.findings import call_outside_traces
from vimoe_jax.moe.products.hopper import ROWS, Tiles
from vimoe_jax.parallel import distributed

Operand = jax.Array | jax.ShapeDtypeStruct

_TUNE_FROM = 1e11  # operations of a product below which the default is taken


def pick(kernel: str, left: Operand, right: Operand, *, num_experts: int | None = None) -> Tiles:
    """Tiles for a kernel of `vimoe_jax.moe.products.hopper`, from the cache or by trying.

    Args:
      kernel: "rows", "rows_transposed", "gated", "gated_backward" or "weights".
      left: its first operand (only shape and dtype are looked at).
      right: its second operand.
      num_experts: E, where the operands do not show it.
    """
    key = (kernel, left.shape, right.shape, str(left.dtype), num_experts)
    return _pick(*key)


@functools.cache
def _pick(kernel, left, right, dtype, num_experts) -> Tiles:
    options = candidates(kernel, left, right)
    operations = 2 * left[0] * left[1] * (right[1] if kernel == "weights" else right[-1])
    if len(options) == 1 or operations < _TUNE_FROM or os.environ.get("VIMOE_TUNE") == "0":
        return options[0]
    name = f"{kernel} {left} {right} {dtype} {num_experts or ''}".strip()

    def find() -> dict[str, int]:
        file = findings.path("tiles")
        known = findings.read(file).get(name)
        for option in options:
            if known == vars(option):
                return vars(option)
        best = vars(_find_fastest(kernel, options, left, right, dtype, num_experts))
        findings.add(file, name, best)
        return best

    # Processes that compiled different kernels would be different programs to XLA.
    chosen = distributed.agree_on_first(f"tiles {name}", find)
    return next(option for option in options if vars(option) == chosen)


def candidates(kernel: str, left: tuple[int, ...], right: tuple[int, ...]) -> list[Tiles]:
    """The tiles worth trying for these shapes, the default first."""
    if kernel == "weights":
        columns, inner = right[1], None
    elif kernel == "gated":
        columns, inner = 2 * right[3], left[1]
    elif kernel in ("rows_transposed", "gated_backward"):
        columns, inner = right[1], left[1]
    else:
        columns, inner = right[2], left[1]
    wide = [c for c in (256, 128) if columns % c == 0]
    if kernel == "gated_backward":
        return [Tiles(columns=c, stages=2, width=w) for c in wide for w in (8, 16, 4)]
    stages = [4] if inner is None or (inner // 64) % 4 == 0 else [3, 4]
    return [Tiles(columns=c, stages=s, width=w) for c in wide for s in stages for w in (8, 16, 4)]


def _find_fastest(kernel, options, left, right, dtype, num_experts) -> Tiles:
    def measure() -> list[float]:
        return [_time(kernel, cut, left, right, dtype, num_experts) for cut in options]

    times = call_outside_traces(measure)
    best = int(np.argmin(times))
    if not np.isfinite(times[best]):
        raise RuntimeError(f"no tiles work for {kernel} of {left} and {right}")
    return options[best]


def _time(kernel, cut: Tiles, left, right, dtype, num_experts) -> float:
    """Seconds a call takes with rows spread evenly; infinite if it does not compile."""
    keys = jax.random.split(jax.random.key(0), 3)
    a, b = (jax.random.normal(k, s, dtype) for k, s in zip(keys, (left, right), strict=False))
    experts = num_experts or right[0]
    tiles = left[0] // ROWS
    expert = jnp.asarray(np.arange(tiles) * experts // tiles, jnp.int32)
    used = jnp.array([tiles], jnp.int32)
    args = (a, b, expert, used)
    if kernel == "weights":
        sizes = jnp.asarray(np.bincount(np.asarray(expert), minlength=experts) * ROWS, jnp.int32)
        f, args = hopper.weights, (a, b, sizes)
    elif kernel == "gated":
        f = hopper.gated
    elif kernel == "gated_backward":
        both = jax.random.normal(keys[2], (left[0], 2 * right[1]), dtype)
        f, args = hopper.gated_backward, (a, b, both, expert, used)
    else:
        f = functools.partial(hopper.rows, transposed=kernel == "rows_transposed")
    run = jax.jit(functools.partial(f, cut=cut))
    try:
        jax.block_until_ready(run(*args))
    except Exception:  # too much shared memory, or a shape the compiler refuses
        return float("inf")
    times = []
    for _ in range(3):
        start = time.perf_counter()
        results = [run(*args) for _ in range(5)]
        jax.block_until_ready(results)
        times.append(time.perf_counter() - start)
    return min(times)
