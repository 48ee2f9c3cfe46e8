"""Seconds of a step: arithmetic on small machines whose answers are known."""

import dataclasses

import numpy as np
import pytest
from jax.sharding import Mesh

from vimoe_jax.parallel import hardware
from vimoe_jax.plan import roofline
from vimoe_jax.plan.collectives import Collective

V5P, V5E, H100 = (hardware.CHIPS[n] for n in ("v5p", "v5e", "h100"))
AXES = ("data", "fsdp", "expert", "tensor")


@dataclasses.dataclass(frozen=True)
class Device:
    id: int
    coords: tuple[int, ...]
    platform: str = "none"
    device_kind: str = "none"
    process_index: int = 0


def machine(torus, sizes):
    """A mesh laid on a torus in order."""
    devices = np.empty(int(np.prod(torus)), object)
    devices[:] = [Device(i, coords) for i, coords in enumerate(np.ndindex(*torus))]
    return Mesh(devices.reshape(sizes), AXES)


def collective(kind, axes, size, group, count=1):
    return Collective(kind, axes, size, (size,), False, count, group, "")


def test_a_ring_sends_both_ways():
    mesh = machine((8, 4, 4), (1, 8, 16, 1))
    gather = collective("all-gather", ("fsdp",), 8_000, 8)
    assert roofline.seconds(gather, V5P, mesh, (8, 4, 4)) == pytest.approx(7_000 / (2 * V5P.link))


def test_two_torus_axes_have_the_links_of_both():
    mesh = machine((8, 4, 4), (1, 8, 16, 1))
    reduce = collective("all-reduce", ("expert",), 16_000, 16, count=3)
    expected = 3 * 2 * 15_000 / (4 * V5P.link)
    assert roofline.seconds(reduce, V5P, mesh, (8, 4, 4)) == pytest.approx(expected)


def test_a_line_has_one_way_to_its_end():
    mesh = machine((4, 4), (1, 4, 4, 1))
    gather = collective("all-gather", ("fsdp",), 4_000, 4)
    assert roofline.seconds(gather, V5E, mesh, (4, 4)) == pytest.approx(3_000 / V5E.link)


def test_a_part_of_a_ring_is_a_line():
    mesh = machine((8, 1, 1), (1, 2, 4, 1))
    gather = collective("all-gather", ("expert",), 4_000, 4)
    assert roofline.seconds(gather, V5P, mesh, (8, 1, 1)) == pytest.approx(3_000 / V5P.link)


def test_an_all_to_all_crosses_the_middle():
    mesh = machine((8, 4, 4), (1, 8, 16, 1))
    ring = collective("all-to-all", ("fsdp",), 8_000, 8)
    # Half of all bytes cross to the other half: 4 senders × 4000 over two links.
    assert roofline.seconds(ring, V5P, mesh, (8, 4, 4)) == pytest.approx(4 * 4_000 / 2 / V5P.link)


def test_gpus_use_the_network_beyond_their_node():
    mesh = machine((32,), (1, 4, 8, 1))
    near = collective("all-gather", ("expert",), 8_000, 8)
    far = collective("all-gather", ("fsdp",), 4_000, 4)
    assert roofline.seconds(near, H100, mesh, (32,)) == pytest.approx(7_000 / H100.link)
    assert roofline.seconds(far, H100, mesh, (32,)) == pytest.approx(3_000 / H100.network)


def test_the_bound_is_the_slowest_part():
    mesh = machine((8, 4, 4), (1, 8, 16, 1))
    sent = [collective("all-gather", ("fsdp",), int(1.6 * V5P.link), 8)]
    r = roofline.roofline(V5P, mesh, (8, 4, 4), V5P.flops, V5P.hbm / 2, sent, 64 * V5P.flops)
    assert (r.compute, r.memory, r.limit) == (1, 0.5, "compute")
    assert r.links == {"fsdp": pytest.approx(0.7)}
    assert r.bound == 1 and r.exposed == pytest.approx(1.7)
    assert r.mfu_bound == pytest.approx(0.5) and r.mfu_exposed == pytest.approx(0.5 / 1.7)


def test_intensity():
    assert roofline.intensity(10, 2) == 5
    assert roofline.intensity(10, 0) == float("inf")
