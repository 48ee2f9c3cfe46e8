"""A plan as a table to read and as JSON."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

from vimoe_jax.plan.alternatives import Alternative
from vimoe_jax.plan.collectives import Collective
from vimoe_jax.plan.compiled import Compiled
from vimoe_jax.plan.roofline import Roofline, intensity

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a plan computes.

    Attributes:
      machine: its name.
      devices: how many.
      mesh: devices along each axis.
      parameters: total and active.
      capacity: bytes of memory per device; None if unknown.
      needed: bytes per device that the step needs; None if the compiler reports none.
      compiled: the step; None if it does not fit.
      model_flops: of a step, all devices together.
      flops: of the program, one device.
      traffic: bytes between one device and its memory.
      sent: the program's collective operations.
      roofline: None without a chip that the table knows.
      alternatives: other settings' memory.
      caveats: what this plan leaves out.
    """

    machine: str
    devices: int
    mesh: dict[str, int]
    parameters: tuple[int, int]
    capacity: float | None
    needed: float | None
    compiled: Compiled | None
    model_flops: float
    flops: float
    traffic: float
    sent: tuple[Collective, ...]
    roofline: Roofline | None
    alternatives: tuple[Alternative, ...]
    caveats: tuple[str, ...]

    @property
    def fits(self) -> bool:
        """Whether a device's memory is enough, as far as it is known."""
        if self.compiled is None:
            return False
        return self.capacity is None or self.compiled.total <= self.capacity

    def sent_by(self) -> dict[tuple[str, str], tuple[int, int]]:
        """(kind, mesh axes) -> bytes that a device sends in a step, and operations."""
        total: dict[tuple[str, str], tuple[int, int]] = defaultdict(lambda: (0, 0))
        for c in self.sent:
            size, count = total[c.kind, "+".join(c.axes)]
            total[c.kind, "+".join(c.axes)] = (size + c.sent, count + c.count)
        return dict(sorted(total.items(), key=lambda item: -item[1][0]))

    def largest_gather(self, *, in_loop: bool = False) -> Collective | None:
        """The all-gather that makes the largest array; of those in loops over layers, if asked."""
        gathers = [c for c in self.sent if c.kind == "all-gather" and c.in_loop >= in_loop]
        return max(gathers, key=lambda c: c.bytes, default=None)


def to_dict(p: Plan) -> dict[str, Any]:
    """For JSON: plain numbers, bytes and seconds."""
    numbers: dict[str, Any] = {
        "machine": p.machine,
        "devices": p.devices,
        "mesh": p.mesh,
        "parameters": p.parameters[0],
        "active_parameters": p.parameters[1],
        "fits": p.fits,
        "memory": {"capacity": p.capacity, "total": p.needed},
        "model_flops": p.model_flops,
        "alternatives": [dataclasses.asdict(a) for a in p.alternatives],
        "caveats": list(p.caveats),
    }
    if p.compiled is None:
        return numbers
    c = p.compiled
    numbers["memory"] |= {
        "arguments": c.arguments,
        "temporaries": c.temporaries,
        "outputs": c.outputs,
        "code": c.code,
    }
    numbers |= {"flops_per_device": p.flops, "memory_traffic_per_device": p.traffic}
    numbers["trace_s"], numbers["compile_s"] = round(c.trace_s, 1), round(c.compile_s, 1)
    numbers["sent"] = [
        {"kind": kind, "axes": axes, "bytes": size, "operations": count}
        for (kind, axes), (size, count) in p.sent_by().items()
    ]
    for name, in_loop in (("largest_all_gather", False), ("largest_all_gather_in_loop", True)):
        largest = p.largest_gather(in_loop=in_loop)
        numbers[name] = None if largest is None else dataclasses.asdict(largest)
    if (r := p.roofline) is not None:
        numbers["roofline"] = dataclasses.asdict(r) | {
            "bound": r.bound,
            "exposed": r.exposed,
            "limit": r.limit,
            "mfu_bound": r.mfu_bound,
            "mfu_exposed": r.mfu_exposed,
        }
    return numbers


def text(p: Plan) -> str:
    """The plan for a terminal."""
    mesh = " × ".join(f"{axis} {n}" for axis, n in p.mesh.items() if n > 1) or "one device"
    lines = [
        f"{p.machine}: {p.devices} devices, {mesh}",
        _row("parameters", f"{p.parameters[0]:,}, active {p.parameters[1]:,}"),
        *_memory(p),
    ]
    if p.compiled is not None:
        lines += [*_arithmetic(p), *_network(p)]
        lines.append(
            _row("compiled in", f"{p.compiled.trace_s + p.compiled.compile_s:.0f} s; nothing run")
        )
    lines += _other_settings(p)
    return "\n".join(lines + [f"note: {caveat}" for caveat in p.caveats])


def _row(name: str, value: str) -> str:
    return f"  {name:<26}{value}"


def _memory(p: Plan) -> Iterator[str]:
    yield "memory a device"
    if p.compiled is not None:
        c = p.compiled
        for name in ("arguments", "temporaries", "outputs", "code"):
            yield _row(name, f"{getattr(c, name) / GIB:8.2f} GiB")
    total = "more than there is" if p.needed is None else f"{p.needed / GIB:8.2f} GiB"
    if p.capacity is not None:
        share = "" if p.needed is None else f", {p.needed / p.capacity:.0%}"
        total += f" of {p.capacity / GIB:.2f}{share}"
    yield _row("total", total + ("" if p.fits else " — DOES NOT FIT"))


def _arithmetic(p: Plan) -> Iterator[str]:
    whole = p.flops * p.devices
    yield "a step"
    yield _row("model FLOPs", f"{p.model_flops / 1e12:,.2f} T, {_each(p.model_flops, p)} a device")
    yield _row(
        "compiled FLOPs",
        f"{whole / 1e12:,.2f} T, {_each(whole, p)} a device, {whole / p.model_flops:.2f} × the "
        "model's",
    )
    yield _row(
        "memory traffic",
        f"{p.traffic / 1e9:,.2f} GB a device, {intensity(p.flops, p.traffic):,.0f} FLOPs a byte",
    )
    if (r := p.roofline) is None:
        return
    yield "roofline"
    yield _row("compute", f"{r.compute * 1e3:9.2f} ms")
    yield _row("memory", f"{r.memory * 1e3:9.2f} ms")
    for axes, seconds in sorted(r.links.items(), key=lambda item: -item[1]):
        yield _row(f"links along {axes}", f"{seconds * 1e3:9.2f} ms")
    yield _row(
        "a step takes at least", f"{r.bound * 1e3:9.2f} ms ({r.limit}): MFU ≤ {r.mfu_bound:.1%}"
    )
    yield _row(
        "if sending overlaps nothing", f"{r.exposed * 1e3:8.2f} ms: MFU ≤ {r.mfu_exposed:.1%}"
    )


def _each(flops: float, p: Plan) -> str:
    return f"{flops / p.devices / 1e12:,.2f} T"


def _network(p: Plan) -> Iterator[str]:
    if not p.sent:
        return
    yield "sent by a device in a step"
    for (kind, axes), (size, count) in p.sent_by().items():
        yield _row(f"{kind}", f"{size / GIB:9.3f} GiB along {axes}, {count} operations")
    for name, in_loop in (("largest all-gather", False), ("largest in a loop", True)):
        if (largest := p.largest_gather(in_loop=in_loop)) is not None:
            shape = "×".join(map(str, largest.shape))
            along = "+".join(largest.axes)
            yield _row(name, f"{largest.bytes / GIB:9.3f} GiB, {shape} along {along}")


def _other_settings(p: Plan) -> Iterator[str]:
    if not p.alternatives:
        return
    yield "other settings, estimated: GiB of state, of all, change"
    for a in p.alternatives:
        change = f"{(a.total - p.needed) / GIB:+9.2f}" if p.needed else ""
        fits = ""
        if p.capacity is not None and p.needed is not None and not p.fits:
            fits = "   would fit" if a.total <= p.capacity else "   nor would this"
        elif p.capacity is not None and p.needed is not None and a.total > p.capacity:
            fits = "   does not fit"
        yield f"  {a.state / GIB:8.2f} {a.total / GIB:8.2f} {change}  {a.change}{fits}"
