"""The device mesh: axes `data`, `fsdp`, `expert`, `tensor`; one device is a mesh of one."""

from __future__ import annotations

import collections
import itertools
import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from jax.sharding import AbstractMesh, Mesh

from vimoe_jax import schema
from vimoe_jax.config import Config
from vimoe_jax.errors import UserError
from vimoe_jax.parallel import rules
from vimoe_jax.plan import hardware

if TYPE_CHECKING:  # which imports `rules`
    from vimoe_jax.model.blueprint import Blueprint

# Float32 weight, gradient and two moments of a parameter, where it is kept; its 16-bit copy, where
# that is gathered to once a step; and the share of a device's memory that they may take, the rest
# being left to activations and what a step needs besides.
_KEPT, _GATHERED = 16, 2
_SHARE = 0.5
_UNKNOWN_MEMORY = 16 * 2**30  # of a device that tells nothing


def for_run(c: Config, blueprint: Blueprint, devices: list[Any] | None = None) -> Mesh:
    """The mesh that a configuration names, or that its rule chooses.

    Args:
      c: the configuration.
      blueprint: its model.
      devices: all of them if not given.

    Raises:
      UserError: the sizes do not fit the devices, the model's experts or the batch.
    """
    devices = jax.devices() if devices is None else devices
    sizes = schema.to_dict(c.mesh)
    mesh = make_mesh(choose(c, blueprint, devices) if c.mesh.rule == "auto" else sizes, devices)
    for complaint in _complaints(c, dict(mesh.shape)):
        raise UserError(f"config.{complaint}")
    own, tensor = _of_a_process(devices), mesh.shape["tensor"]
    if own % tensor:
        raise UserError(
            f"config.mesh.tensor: {tensor} devices share their rows, and must be of one process, "
            f"which has {own}: rows are read by process"
        )
    return mesh


def describe(mesh: Mesh) -> str:
    """`data 2 × expert 4`: the axes with more than one device."""
    named = [f"{axis} {size}" for axis, size in mesh.shape.items() if size > 1]
    return " × ".join(named) or "one device"


def choose(c: Config, blueprint: Blueprint, devices: list[Any]) -> dict[str, int]:
    """Sizes by the rule `auto`: of all meshes on which the batch can be split, the simplest.

    In this order: as few devices as possible along `tensor`, then splitting the parameters (`fsdp`
    × `expert`) no more than lets their state, which is split over all devices, and a 16-bit copy
    fit half of a device's memory, then as much of that as possible along `expert`; all others are
    `data`. `tensor` stays within a process and divides the decoder's heads; `expert` divides the
    experts and, on GPUs, stays within a host. If the parameters fit nowhere, the mesh on which they
    take least.

    Raises:
      UserError: the batch can be split on no mesh.
    """
    count = len(devices)
    own = _of_a_process(devices)
    near = devices_of_a_host(devices) if devices[0].platform == "gpu" else count
    budget = _SHARE * memory(devices[0])
    meshes = []
    for tensor, fsdp, expert in itertools.product(_divisors(count), repeat=3):
        if count % (tensor * fsdp * expert):
            continue
        data = count // (tensor * fsdp * expert)
        sizes = {"data": data, "fsdp": fsdp, "expert": expert, "tensor": tensor}
        if own % tensor or near % (expert * tensor) or not _splits_heads(c, tensor):
            continue
        if expert > 1 and not _experts(c):
            continue
        if any(_complaints(c, sizes)):
            continue
        held = _state_bytes(blueprint, sizes)
        meshes.append(((max(0.0, held - budget), tensor, fsdp * expert, fsdp), sizes))
    if not meshes:
        at_most = {"data": count, "fsdp": 1, "expert": 1, "tensor": 1}
        raise UserError(f"config.{next(_complaints(c, at_most))}")
    return min(meshes, key=lambda m: m[0])[1]


def memory(device: Any) -> float:
    """Bytes that a device may use: as it says itself, else by its kind's data sheet."""
    try:
        stats = device.memory_stats() or {}
    except (jax.errors.JaxRuntimeError, NotImplementedError):
        stats = {}  # a device that is only compiled for
    chip = hardware.chip_of(device.device_kind)
    return stats.get("bytes_limit") or (chip.memory if chip else _UNKNOWN_MEMORY)


def devices_of_a_host(devices: list[Any]) -> int:
    """Devices that are joined without a network: a process's, or on GPUs a node's."""
    mine = _of_a_process(devices)
    chip = hardware.chip_of(devices[0].device_kind)
    return max(mine, math.gcd(chip.node, len(devices)) if chip and chip.node else 1)


def _of_a_process(devices: list[Any]) -> int:
    return min(collections.Counter(d.process_index for d in devices).values())


def _divisors(n: int) -> list[int]:
    return [d for d in range(1, n + 1) if n % d == 0]


def _experts(c: Config) -> dict[str, int]:
    """Experts by part, of the parts that have any."""
    parts = {part: getattr(c.model, part).moe for part in ("vision", "connector", "decoder")}
    return {part: moe.experts for part, moe in parts.items() if moe.num_experts}


def _splits_heads(c: Config, tensor: int) -> bool:
    d = c.model.decoder
    return not any(n % tensor for n in (d.num_heads, d.num_kv_heads, d.mlp_dim))


def _state_bytes(blueprint: Blueprint, sizes: Mapping[str, int]) -> float:
    """Bytes of parameters, gradients and optimizer state on a device, and of gathered weights."""
    mesh = AbstractMesh(tuple(sizes[a] for a in rules.MESH_AXES), rules.MESH_AXES)
    return _KEPT * blueprint.held(mesh) + _GATHERED * blueprint.held(mesh, rules.BETWEEN)


def _complaints(c: Config, sizes: Mapping[str, int]) -> Iterator[str]:
    """What of a configuration cannot be split so, each beginning with the field's name."""
    for part, experts in _experts(c).items():
        if experts % sizes["expert"]:
            fit = ", ".join(map(str, _divisors(experts)))
            yield (
                f"mesh.expert: {sizes['expert']} does not divide the {experts} experts of "
                f"model.{part}; what does: {fit}"
            )
    rows = math.prod(sizes[axis] for axis in rules.TOKEN_AXES)
    batches = {
        "train.batch_size": (c.train.batch_size, c.train.accumulate),
        "eval.batch_size": (c.eval.batch_size, 1),
    }
    for name, (size, parts) in batches.items():
        if size // parts % rows:
            micro = f" in {parts} microbatches" if parts > 1 else ""
            yield (
                f"{name}: {size} rows{micro} cannot be split over {rows} devices; "
                f"multiples of {rows * parts} can"
            )


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


def to_mesh(batch: Mapping[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """This process's rows of a batch as global arrays, rows split over all token axes."""

    def put(x: np.ndarray) -> jax.Array:
        shape = (x.shape[0] * jax.process_count(), *x.shape[1:])
        where = rules.sharding(("batch",) + (None,) * (x.ndim - 1), shape, mesh)
        return jax.make_array_from_process_local_data(where, x, shape)

    # Where other processes have devices too, JAX takes this transfer for an implicit one.
    with jax.transfer_guard_host_to_device("allow"):
        return {name: put(x) for name, x in batch.items()}
