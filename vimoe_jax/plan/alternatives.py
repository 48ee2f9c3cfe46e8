"""What other settings would need of memory, from one compiled plan: traced, not compiled.

State is exact: shapes, dtypes and shardings say it. Activations are estimated: what a compiled step
needs for the time of the step, plus the difference in what the backward pass is handed.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import jax
from jax.sharding import AbstractMesh, Mesh

from vimoe_jax.config import Config
from vimoe_jax.model.blueprint import Blueprint
from vimoe_jax.model.vlm import compute_dtype
from vimoe_jax.parallel import rules
from vimoe_jax.plan.compiled import abstract_batch, device_bytes
from vimoe_jax.train.program import Program

REMAT = ("none", "dots", "dots_no_batch", "dispatch", "full", "offload")
OPTIM = {"moments_dtype": ("float32", "bfloat16"), "name": ("adamw", "adafactor")}


@dataclasses.dataclass(frozen=True)
class Alternative:
    """One setting in another way.

    Attributes:
      change: what is set, in the form of the command line.
      state: bytes per device of parameters and optimizer state.
      total: estimated bytes per device of all.
    """

    change: str
    state: int
    total: int


def alternatives(
    c: Config, blueprint: Blueprint, mesh: Mesh, total: float
) -> Iterator[Alternative]:
    """Other rematerialisation, optimizer state, microbatches and parameter splits.

    Args:
      c: the configuration that was compiled.
      blueprint: its model.
      mesh: its devices.
      total: bytes per device that it needs.
    """
    sizes = dict(mesh.shape)
    state = device_bytes(Program.create(c, blueprint, mesh).abstract())
    rows = max(1, c.train.batch_size // c.train.accumulate * sizes["tensor"] // mesh.size)
    saved = saved_bytes(c, blueprint, rows)

    for name in REMAT:
        if name != c.model.remat:
            other = dataclasses.replace(c, model=dataclasses.replace(c.model, remat=name))
            planned = Blueprint.create(other.model, blueprint.vocab_size)
            extra = saved_bytes(other, planned, rows) - saved
            yield Alternative(f"model.remat={name}", state, round(total + extra))
    for field, values in OPTIM.items():
        for value in values:
            if value == getattr(c.optim, field):
                continue
            other = dataclasses.replace(c, optim=dataclasses.replace(c.optim, **{field: value}))
            new = device_bytes(Program.create(other, blueprint, mesh).abstract())
            yield Alternative(f"optim.{field}={value}", new, round(total + new - state))
    less = saved_bytes(c, blueprint, rows // 2) - saved if rows % 2 == 0 else 0
    if less:
        change = f"train.accumulate={2 * c.train.accumulate}"
        yield Alternative(change, state, round(total + less))
    yield from _wider(c, blueprint, sizes, state, total, less)
    yield _together(c, blueprint, mesh, rows, total - state - saved)


def _wider(
    c: Config, blueprint: Blueprint, sizes: dict[str, int], state: int, total: float, less: int
) -> Iterator[Alternative]:
    """Weights split twice as far: by fewer copies of the model, or by twice the devices.

    `less` is what half of a device's rows change (fewer, for a given batch on twice the devices).
    """
    wide = sizes | {"fsdp": 2 * sizes["fsdp"]}
    if sizes["data"] % 2 == 0:
        wide["data"] //= 2
        change, less = f"mesh.data={wide['data']} mesh.fsdp={wide['fsdp']}", 0
    else:
        change = f"mesh.fsdp={wide['fsdp']}, twice the devices"
    mesh, now = (AbstractMesh(tuple(m.values()), tuple(m)) for m in (wide, sizes))
    new = device_bytes(Program.create(c, blueprint, mesh).abstract())
    less += _gathered(blueprint, mesh) - _gathered(blueprint, now)
    yield Alternative(change, new, round(total + new - state + less))


def _gathered(blueprint: Blueprint, mesh: AbstractMesh) -> int:
    """Bytes of the weights that a device has gathered in the compute dtype for a whole step."""
    return compute_dtype(blueprint.config.dtype).itemsize * blueprint.held(mesh, rules.BETWEEN)


def _together(c: Config, blueprint: Blueprint, mesh: Mesh, rows: int, rest: float) -> Alternative:
    """All that needs no other machine, at once: `rest` is neither state nor saved activations."""
    parts = {
        "model": dataclasses.replace(c.model, remat="full"),
        "optim": dataclasses.replace(c.optim, moments_dtype="bfloat16"),
        "train": dataclasses.replace(c.train, accumulate=c.train.accumulate * rows),
    }
    least = dataclasses.replace(c, **parts)
    state = device_bytes(Program.create(least, blueprint, mesh).abstract())
    saved = saved_bytes(least, Blueprint.create(least.model, blueprint.vocab_size), 1)
    change = "model.remat=full optim.moments_dtype=bfloat16"
    if rows > 1:
        change += f" train.accumulate={least.train.accumulate}"
    return Alternative(change, state, round(rest + state + saved))


def saved_bytes(c: Config, blueprint: Blueprint, rows: int) -> int:
    """Bytes that the forward pass of `rows` rows on one device leaves to the backward pass."""
    one = AbstractMesh((1, 1, 1, 1), ("data", "fsdp", "expert", "tensor"))

    def residuals(params: Any, batch: Any) -> Any:
        def loss(params: Any) -> jax.Array:
            tokens, out = blueprint.model(params).loss(batch, key=jax.random.key(0))
            return tokens.loss + out.aux_loss

        return jax.vjp(loss, params)[1]

    traced = jax.make_jaxpr(residuals)(blueprint.abstract(one), abstract_batch(c, one, rows))
    return sum(
        math.prod(x.shape) * x.dtype.itemsize
        for x in traced.out_avals
        if x.memory_space != jax.memory.Space.Host  # where `offload` puts them
    )
