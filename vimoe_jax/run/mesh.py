"""The mesh that a run trains on: named by its configuration, or chosen by a rule."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from typing import Any

import jax
from jax.sharding import AbstractMesh, Mesh

from vimoe_jax.base.errors import UserError
from vimoe_jax.config import Config
from vimoe_jax.config.parts import parts_of
from vimoe_jax.model.blueprint import Blueprint
from vimoe_jax.parallel import rules
from vimoe_jax.parallel.mesh import devices_of_a_host, devices_of_a_process, make_mesh, memory

# Float32 weight, gradient and two moments of a parameter, where it is kept; its 16-bit copy, where
# that is gathered to once a step; and the share of a device's memory that they may take, the rest
# being left to activations and what a step needs besides.
_KEPT, _GATHERED = 16, 2
_SHARE = 0.5


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
    sizes = {axis: getattr(c.mesh, axis) for axis in rules.MESH_AXES}
    mesh = make_mesh(choose(c, blueprint, devices) if c.mesh.rule == "auto" else sizes, devices)
    for complaint in _complaints(c, dict(mesh.shape)):
        raise UserError(f"config.{complaint}")
    own, tensor = devices_of_a_process(devices), mesh.shape["tensor"]
    if own % tensor:
        raise UserError(
            f"config.mesh.tensor: {tensor} devices share their rows, and must be of one process, "
            f"which has {own}: rows are read by process"
        )
    return mesh


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
    own = devices_of_a_process(devices)
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


def _divisors(n: int) -> list[int]:
    return [d for d in range(1, n + 1) if n % d == 0]


def _experts(c: Config) -> dict[str, int]:
    """Experts by part, of the parts that have any."""
    return {n: part.moe.experts for n, part in parts_of(c.model).items() if part.has_experts}


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
