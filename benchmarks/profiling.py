"""Where a call's time goes on GPUs: by kernel, by the model's named scopes, between the GPUs."""

from __future__ import annotations

import dataclasses
import re
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

SCOPES = ("optimizer", "cross_entropy", "assign", "experts", "moe", "attention", "mlp")
_SENDS = re.compile(r"nccl|all_?to_?all|all_?reduce|all_?gather|reduce_?scatter", re.IGNORECASE)


@dataclasses.dataclass(frozen=True)
class Event:
    """A kernel's run.

    Attributes:
      device: the GPU's name in the profile.
      kernel: its name.
      op: the HLO operation it belongs to, "" if not told (CUDA graphs tell theirs).
      start: ns.
      end: ns.
    """

    device: str
    kernel: str
    op: str
    start: float
    end: float


def events(call: Callable[[], Any], calls: int = 3) -> list[Event]:
    """All kernels of some calls, after one that is not looked at."""
    import jax

    jax.block_until_ready(call())
    found = []
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            for _ in range(calls):
                jax.block_until_ready(call())
        (path,) = Path(folder).rglob("*.xplane.pb")
        for plane in jax.profiler.ProfileData.from_file(str(path)).planes:
            if "GPU" not in plane.name:
                continue
            for line in plane.lines:
                if "Stream" in line.name:
                    for e in line.events:
                        op = str(dict(e.stats).get("hlo_op", ""))
                        ends = e.start_ns, e.start_ns + e.duration_ns
                        found.append(Event(plane.name, e.name, op, *ends))
    return found


def kernels(found: Iterable[Event], calls: int = 3) -> list[tuple[str, str, float]]:
    """(kernel, operation, milliseconds a call over all devices), largest first."""
    total: dict[tuple[str, str], float] = defaultdict(float)
    for e in found:
        total[e.kernel, e.op] += e.end - e.start
    rows = [(name, op, ns / calls / 1e6) for (name, op), ns in total.items()]
    return sorted(rows, key=lambda one: -one[2])


def scope(op_name: str) -> str:
    """The innermost of `SCOPES` in an operation's path, under the tower or the decoder."""
    parts = re.findall(r"\w+", op_name)
    part = next((p for p in ("vision", "decoder") if p in parts), "")
    inner = next((p for p in reversed(parts) if p in SCOPES), "other")
    backward = " backward" if "transpose" in parts else ""
    return " ".join(filter(None, (part, inner))) + backward


def scopes_of(
    rows: Iterable[tuple[str, str, float]], hlo: str
) -> list[tuple[str, str, str, float]]:
    """`kernels`' rows with the scope of each before them, or a library's kernel itself.

    Args:
      rows: what `kernels` gave.
      hlo: the compiled program's text, whose metadata says where an operation is from. In a CUDA
        graph, XLA's own kernels still bear their operation's name; libraries' stand by themselves.
    """
    found = re.findall(r'^\s*(?:ROOT )?%?([\w.-]+) = .*op_name="([^"]*)"', hlo, re.MULTILINE)
    paths = {re.sub(r"\W", "_", op): path for op, path in found}

    def of(kernel: str, op: str) -> str:
        path = paths.get(re.sub(r"\W", "_", op)) or paths.get(kernel)
        return scope(path) if path else kernel[:40]

    return [(of(kernel, op), kernel, op, ms) for kernel, op, ms in rows]


def by_scope(rows: Iterable[tuple[str, str, str, float]]) -> list[tuple[str, float]]:
    """(scope, milliseconds a call) of what `scopes_of` gave, largest first."""
    total: dict[str, float] = defaultdict(float)
    for name, _, _, ms in rows:
        total[name] += ms
    return sorted(total.items(), key=lambda one: -one[1])


def computation(found: Iterable[Event], calls: int = 3) -> float:
    """Milliseconds a call of kernels that exchange nothing, the mean over devices."""
    found = list(found)
    works = sum(e.end - e.start for e in found if not _SENDS.search(e.kernel))
    return works / calls / 1e6 / max(1, len({e.device for e in found}))


def communication(found: Iterable[Event]) -> tuple[float, float]:
    """(share of the time in which a device exchanges, share of that in which it also computes).

    Over each device's time from its first kernel to its last, the mean over devices.
    """
    devices: dict[str, list[Event]] = defaultdict(list)
    for e in found:
        devices[e.device].append(e)
    shares = []
    for mine in devices.values():
        sends = _union((e.start, e.end) for e in mine if _SENDS.search(e.kernel))
        works = _union((e.start, e.end) for e in mine if not _SENDS.search(e.kernel))
        span = max(e.end for e in mine) - min(e.start for e in mine)
        sent = _length(sends)
        both = sent + _length(works) - _length(_union(sends + works))
        shares.append((sent / span, both / sent if sent else 0.0))
    count = max(1, len(shares))
    return sum(s for s, _ in shares) / count, sum(b for _, b in shares) / count


def _union(spans: Iterable[tuple[float, float]]) -> list[tuple[float, float]]:
    """The same time as spans that do not overlap, in order."""
    merged: list[tuple[float, float]] = []
    for start, end in sorted(spans):
        if merged and start <= merged[-1][1]:
            merged[-1] = merged[-1][0], max(end, merged[-1][1])
        else:
            merged.append((start, end))
    return merged


def _length(spans: list[tuple[float, float]]) -> float:
    return sum(end - start for start, end in spans)
