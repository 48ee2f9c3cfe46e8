"""How fast a step can be at most: arithmetic, memory and links, each at its full speed."""

from __future__ import annotations

import dataclasses
import math
from collections import defaultdict
from collections.abc import Iterable

import numpy as np
from jax.sharding import Mesh

from vimoe_jax.parallel.hardware import Chip
from vimoe_jax.plan.collectives import Collective


@dataclasses.dataclass(frozen=True)
class Roofline:
    """Seconds of a step, each as if nothing else took time.

    Attributes:
      compute: for the program's matrix products at the chip's peak.
      memory: for its traffic with the main memory.
      links: for what it sends, by the mesh axes ("fsdp", "fsdp+expert") that it is sent along.
      useful: for the model's FLOPs at the peak of all chips: MFU is this over a step's time.
    """

    compute: float
    memory: float
    links: dict[str, float]
    useful: float

    @property
    def interconnect(self) -> float:
        """Seconds for all that is sent, one mesh axis after the other."""
        return sum(self.links.values())

    @property
    def bound(self) -> float:
        """Seconds of a step in which all overlaps with all: no step is faster."""
        return max(self.compute, self.memory, self.interconnect)

    @property
    def exposed(self) -> float:
        """Seconds of a step in which sending overlaps with nothing."""
        return max(self.compute, self.memory) + self.interconnect

    @property
    def limit(self) -> str:
        """What decides the bound."""
        times = {
            "compute": self.compute,
            "memory": self.memory,
            "interconnect": self.interconnect,
        }
        return max(times, key=lambda name: times[name])

    @property
    def mfu_bound(self) -> float:
        """The model FLOPs utilisation that cannot be exceeded."""
        return self.useful / self.bound if self.bound else 0.0

    @property
    def mfu_exposed(self) -> float:
        """The same where sending overlaps with nothing."""
        return self.useful / self.exposed if self.exposed else 0.0


def roofline(
    chip: Chip,
    mesh: Mesh,
    shape: tuple[int, ...],
    flops: float,
    traffic: float,
    sent: Iterable[Collective],
    useful: float,
) -> Roofline:
    """The roofline of a program on chips of one type.

    Args:
      chip: what the machine is made of.
      mesh: of its devices.
      shape: chips along each axis of the torus.
      flops: of the program on one device.
      traffic: bytes between one device and its memory.
      sent: the program's collective operations.
      useful: the model's FLOPs, of all devices together.
    """
    links: dict[str, float] = defaultdict(float)
    for c in sent:
        links["+".join(c.axes)] += seconds(c, chip, mesh, shape)
    return Roofline(
        flops / chip.flops, traffic / chip.hbm, dict(links), useful / (mesh.size * chip.flops)
    )


def seconds(c: Collective, chip: Chip, mesh: Mesh, shape: tuple[int, ...]) -> float:
    """Seconds of a collective operation's bytes at the links' full speed, without latency.

    On a torus rings run both ways at once along every torus axis that the mesh axes cover; a line
    (an axis too short to be closed) has half of that. An all-to-all crosses the middle of its
    longest axis: of n chips in a ring, bytes·n/8 over each link. GPUs send over NVLink within
    their node and over their own adapter beyond.
    """
    if chip.platform != "tpu":
        speed = chip.link if _within_node(c.axes, mesh, chip.node) else chip.network
        return c.sent / speed if speed else 0.0
    lengths = _lengths(c.axes, mesh, shape)
    if not lengths:
        return 0.0
    directions = [
        2 if n == shape[i] and n % chip.wraps == 0 else 1 for i, n in lengths.items()
    ]  # round a ring both ways; at the end of a line all comes over one link
    if c.kind == "collective-permute":
        return c.sent / chip.link
    if c.kind in ("all-to-all", "ragged-all-to-all"):
        return max(
            c.count * c.bytes * n / (4 * d * chip.link)
            for n, d in zip(lengths.values(), directions, strict=True)
        )
    return c.sent / (sum(directions) * chip.link)


def _lengths(axes: tuple[str, ...], mesh: Mesh, shape: tuple[int, ...]) -> dict[int, int]:
    """Torus axis -> chips along it, of the torus axes that a group of these mesh axes covers."""
    coords = np.array([d.coords for d in mesh.devices.flat]).reshape(*mesh.devices.shape, -1)
    index = tuple(slice(None) if axis in axes else 0 for axis in mesh.axis_names)
    group = coords[index].reshape(-1, coords.shape[-1])
    spans = {i: len(set(group[:, i])) for i in range(len(shape))}
    return {i: n for i, n in spans.items() if n > 1}


def _within_node(axes: tuple[str, ...], mesh: Mesh, node: int) -> bool:
    places = np.arange(mesh.size).reshape(mesh.devices.shape)
    index = tuple(slice(None) if axis in axes else 0 for axis in mesh.axis_names)
    group = places[index].reshape(-1)
    return len(group) <= node and len(set(group // node)) == 1


def intensity(flops: float, traffic: float) -> float:
    """FLOPs a byte of memory traffic; infinite if there is none."""
    return flops / traffic if traffic else math.inf
