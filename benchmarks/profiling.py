"""Where a call's time goes on a GPU, by kernel and by the model's named scopes."""

from __future__ import annotations

import re
import tempfile
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

SCOPES = ("optimizer", "cross_entropy", "assign", "experts", "moe", "attention", "mlp")


def kernels(call: Callable[[], Any], calls: int = 5) -> list[tuple[str, str, float]]:
    """(kernel, the HLO operation it belongs to or "", milliseconds a call), largest first.

    A CUDA graph's kernels have no operation: `--xla_gpu_enable_command_buffer=` does without.
    """
    import jax

    jax.block_until_ready(call())
    total: dict[tuple[str, str], float] = defaultdict(float)
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            for _ in range(calls):
                jax.block_until_ready(call())
        (path,) = Path(folder).rglob("*.xplane.pb")
        data = jax.profiler.ProfileData.from_file(str(path))
        for plane in data.planes:
            if "GPU" not in plane.name:
                continue
            for line in plane.lines:
                if "Stream" in line.name:
                    for event in line.events:
                        op = str(dict(event.stats).get("hlo_op", ""))
                        total[event.name, op] += event.duration_ns
    found = [(name, op, ns / calls / 1e6) for (name, op), ns in total.items()]
    return sorted(found, key=lambda one: -one[2])


def scope(op_name: str) -> str:
    """The innermost of `SCOPES` in an operation's path, under the tower or the decoder."""
    parts = re.findall(r"\w+", op_name)
    part = next((p for p in ("vision", "decoder") if p in parts), "")
    inner = next((p for p in reversed(parts) if p in SCOPES), "other")
    backward = " backward" if "transpose" in parts else ""
    return " ".join(filter(None, (part, inner))) + backward


def by_scope(found: list[tuple[str, str, float]], hlo: str) -> list[tuple[str, float]]:
    """(scope, milliseconds a call), largest first.

    Args:
      found: what `kernels` gave.
      hlo: the compiled program's text, whose metadata says where an operation is from.
    """
    paths = dict(re.findall(r'^\s*(?:ROOT )?%?([\w.-]+) = .*op_name="([^"]*)"', hlo, re.MULTILINE))
    total: dict[str, float] = defaultdict(float)
    for kernel, op, ms in found:
        name = scope(paths[op]) if op in paths else f"no operation: {kernel[:40]}"
        total[name] += ms
    return sorted(total.items(), key=lambda one: -one[1])
