"""The device mesh: axes `data`, `fsdp`, `expert`, `tensor`; one device is a mesh of one."""

from __future__ import annotations

import collections
import math
from collections.abc import Mapping
from typing import Any, TypeVar

import jax
import numpy as np
from jax.sharding import Mesh

from vimoe_jax.base.errors import UserError
from vimoe_jax.parallel import hardware, rules

T = TypeVar("T")

_UNKNOWN_MEMORY = 16 * 2**30  # of a device that reports none


def describe(mesh: Mesh) -> str:
    """`data 2 × expert 4`: the axes with more than one device."""
    named = [f"{axis} {size}" for axis, size in mesh.shape.items() if size > 1]
    return " × ".join(named) or "one device"


def memory(device: Any) -> float:
    """Bytes that a device may use: as it reports, else as its data sheet has it."""
    try:
        stats = device.memory_stats() or {}
    except (jax.errors.JaxRuntimeError, NotImplementedError):
        stats = {}  # a device that is only compiled for
    chip = hardware.chip_of(device.device_kind)
    return stats.get("bytes_limit") or (chip.memory if chip else _UNKNOWN_MEMORY)


def devices_of_a_host(devices: list[Any]) -> int:
    """Devices that are joined without a network: a process's, or on GPUs a node's."""
    mine = devices_of_a_process(devices)
    chip = hardware.chip_of(devices[0].device_kind)
    return max(mine, math.gcd(chip.node, len(devices)) if chip and chip.node else 1)


def devices_of_a_process(devices: list[Any]) -> int:
    """The fewest that any process has."""
    return min(collections.Counter(d.process_index for d in devices).values())


def make_mesh(sizes: Mapping[str, int], devices: list[Any] | None = None) -> Mesh:
    """Builds the mesh; at most one size may be -1 and takes the devices that are left.

    Args:
      sizes: mesh axis -> number of devices along it; axes not named have 1.
      devices: all of them if not given.

    Raises:
      UserError: the sizes do not multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    shape = [sizes.get(axis, 1) for axis in rules.MESH_AXES]
    if shape.count(-1) > 1:
        raise UserError("config.mesh: at most one axis may be -1")
    known = int(np.prod([s for s in shape if s != -1]))
    if -1 in shape and len(devices) % known == 0:
        shape[shape.index(-1)] = len(devices) // known
    if int(np.prod(shape)) != len(devices):
        named = ", ".join(f"{a}={sizes.get(a, 1)}" for a in rules.MESH_AXES)
        raise UserError(f"config.mesh: {named} does not fit {len(devices)} device(s)")
    if devices[0].platform == "tpu" and len(devices) > 1:
        from jax.experimental import mesh_utils

        placed = mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
        return Mesh(placed, rules.MESH_AXES)
    return Mesh(np.array(devices, dtype=object).reshape(shape), rules.MESH_AXES)


def to_mesh(batch: T, mesh: Mesh) -> T:
    """This process's rows of a batch as global arrays, rows split over all token axes.

    Args:
      batch: a tree of arrays whose first axis is rows.
      mesh: of all processes.
    """

    def put(x: np.ndarray) -> jax.Array:
        shape = (x.shape[0] * jax.process_count(), *x.shape[1:])
        where = rules.sharding(("batch",) + (None,) * (x.ndim - 1), shape, mesh)
        return jax.make_array_from_process_local_data(where, x, shape)

    # Where other processes have devices too, JAX takes this transfer for an implicit one.
    with jax.transfer_guard_host_to_device("allow"):
        return jax.tree.map(put, batch)
