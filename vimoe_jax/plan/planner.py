"""From a configuration and a machine's name to a `Plan`."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

from vimoe_jax.base.errors import UserError
from vimoe_jax.config import Config
from vimoe_jax.model.blueprint import Blueprint, vocabulary
from vimoe_jax.model.flops import model_flops
from vimoe_jax.plan import cost, hlo, roofline, topology
from vimoe_jax.plan.alternatives import alternatives
from vimoe_jax.plan.collectives import collectives
from vimoe_jax.plan.compiled import OutOfMemory, compile_step
from vimoe_jax.plan.report import Plan
from vimoe_jax.plan.topology import Target
from vimoe_jax.run.mesh import for_run
from vimoe_jax.text import tokenizers as tokenizer_lib


def make(c: Config, name: str, *, others: bool = True) -> Plan:
    """See `vimoe_jax.plan.make`."""
    target = topology.target(name)
    if c.model.dtype == "auto" and target.chip is not None:
        c = dataclasses.replace(c, model=dataclasses.replace(c.model, dtype="bfloat16"))
    blueprint = Blueprint.create(c.model, _vocabulary(c))
    mesh = for_run(c, blueprint, target.devices)
    compiled, needed = None, None
    try:
        compiled = compile_step(c, blueprint, mesh)
        needed = float(compiled.total)
    except OutOfMemory as e:
        needed = e.needed
    module = hlo.Module("" if compiled is None else compiled.text)
    sent = tuple(collectives(module, mesh)) if mesh.size > 1 else ()
    flops, traffic, useful = (
        cost.flops(module),
        cost.memory_bytes(module),
        model_flops(c, blueprint),
    )
    speed = None
    if target.chip is not None and compiled is not None:
        speed = roofline.roofline(target.chip, mesh, target.shape, flops, traffic, sent, useful)
    return Plan(
        machine=target.name,
        devices=mesh.size,
        mesh=dict(mesh.shape),
        parameters=(blueprint.num_parameters(), blueprint.num_active_parameters()),
        capacity=None if target.chip is None else target.chip.memory,
        needed=needed,
        compiled=compiled,
        model_flops=useful,
        flops=flops,
        traffic=traffic,
        sent=sent,
        roofline=speed,
        alternatives=tuple(alternatives(c, blueprint, mesh, needed or 0)) if others else (),
        caveats=tuple(_caveats(c, target)),
    )


def _vocabulary(c: Config) -> int:
    """V: configured, or of the tokenizer's file, or the most that the run's own may have."""
    if c.model.decoder.vocab_size:
        return c.model.decoder.vocab_size
    if not c.data.tokenizer:
        return vocabulary(c.model, c.data.vocab_size)
    if not Path(c.data.tokenizer).exists():
        raise UserError(
            f"config.data.tokenizer: no such file: {c.data.tokenizer}; for a plan without it, set "
            "config.model.decoder.vocab_size"
        )
    return vocabulary(c.model, tokenizer_lib.load(c.data.tokenizer).vocab_size)


def _caveats(c: Config, target: Target) -> Iterator[str]:
    if target.chip is None:
        yield f"no capacities are known of {target.name}: no roofline"
        return
    if not target.exact:
        yield (
            f"no {target.chip.name} here, and XLA compiles for GPUs only beside one: this is the "
            "program for as many CPU devices; FLOPs and what is sent are the same, memory and its "
            "traffic are without GPU fusions, kernels and cuDNN's attention, so rather too large"
        )
    elif target.chip.platform == "tpu":
        yield "attention is XLA's own; latency and the host's input are not counted"
        parts = (c.model.vision, c.model.connector, c.model.decoder)
        if any(p.moe.num_experts and p.moe.dispatcher == "dropless" for p in parts):
            yield "dropless experts are compiled in their portable form, not with TPU kernels"
