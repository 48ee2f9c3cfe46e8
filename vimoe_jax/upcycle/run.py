"""From one workdir to another: reads the dense run, writes the MoE run, measures what moved."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from vimoe_jax.base.errors import UserError
from vimoe_jax.base.files import new_folder, write_json
from vimoe_jax.config import Config
from vimoe_jax.config.parts import PARTS, parts_of
from vimoe_jax.data import pipeline
from vimoe_jax.model.tokens import Layout
from vimoe_jax.parallel.mesh import to_mesh
from vimoe_jax.run.batches import fixed_batches
from vimoe_jax.run.checkpoint import Checkpoints
from vimoe_jax.run.state import TrainState
from vimoe_jax.run.workdir import Run, reopen, start_run
from vimoe_jax.train.program import Program
from vimoe_jax.upcycle import convert, drift, methods, moments, weights
from vimoe_jax.upcycle.methods import Upcycling
from vimoe_jax.upcycle.migration import Migration, check

# Fields of the configuration on which the order of batches depends.
_ORDER = ("dataset", "source", "variant", "train_split", "style", "max_questions", "vary_prompts")


def upcycle(
    source: Path, c: Config, workdir: Path, how: Upcycling, step: int | None, fresh: bool
) -> dict[str, Any]:
    """Makes `workdir`, whole or not at all.

    Args:
      source: workdir of the dense run.
      c: configuration of the MoE run.
      workdir: must not exist, or be empty.
      how: the method and its numbers.
      step: of the source's checkpoint; None for the newest.
      fresh: start the optimizer and its schedule anew, at step 0.

    Returns:
      What happened, as it is written to `upcycle.json`.

    Raises:
      UserError: one line that names the option or field.
    """
    old = reopen(source, [], one_device=True)
    step = _step(source, old.config, step)
    check(old.config.model, c.model, source)
    for part in parts_of(c.model).values():
        if part.has_experts:
            methods.check(how, part.moe, part.mlp_dim, f"config.model.{part.name}.moe")
    if workdir.exists() and (not workdir.is_dir() or any(workdir.iterdir())):
        raise UserError(f"--workdir: {workdir} is there already and not empty")
    if not fresh and c.train.steps <= step:
        raise UserError(
            f"config.train.steps: {c.train.steps}, but {source} is at step {step}, from which "
            "training goes on (--fresh_optimizer starts at 0)"
        )
    with new_folder(workdir) as folder:
        old.tokenizer.save(folder)
        new = start_run(c, folder)
        migration = Migration(old.blueprint, new.blueprint)
        report = _convert(old, new, migration, how, step, fresh)
        write_json(folder / "upcycle.json", report)
    return report


def _convert(
    old: Run, new: Run, migration: Migration, how: Upcycling, step: int, fresh: bool
) -> dict[str, Any]:
    """Everything that touches arrays."""
    mesh, seed = new.mesh, new.config.seed
    if migration.old.vocab_size != migration.new.vocab_size:
        raise UserError(
            f"config.model.decoder.vocab_size: {migration.new.vocab_size}, but the source has "
            f"{migration.old.vocab_size}"
        )
    shapes = Program.create(old.config, old.blueprint, mesh).abstract()
    program = Program.create(new.config, new.blueprint, mesh)
    if not fresh:
        moments.check(shapes.opt_state, "the source's optimizer")
        moments.check(program.abstract().opt_state, "config.optim")
    state, data = _restore(old, shapes, step)
    params = state.all_params()
    state = dataclasses.replace(
        state, params={}, frozen={}
    )  # arrays are let go as they are used up

    count = max(1, -(-how.samples // new.config.train.batch_size))
    batches = fixed_batches(new, new.train_source, count if how.method == "importance" else 1)
    layouts = convert.plan(migration, how, seed, params, batches, mesh)
    batch = to_mesh(batches[0], mesh)
    before, _ = drift.hidden(old.blueprint, params, batch, mesh)

    made = weights.upcycle(migration, params, layouts, how, mesh, seed)
    report = _report(old, new, migration, how, step, made, before, batch)
    state = convert.state(migration, None if fresh else state, made, layouts, program)
    position = _position(old.config, new.config, data) | {"seconds": 0.0}
    checkpoints = Checkpoints(new.workdir / "checkpoints", new.config.checkpoint)
    try:
        checkpoints.save(state, position)
        checkpoints.wait()
    finally:
        checkpoints.close()
    return report | {"new_step": 0 if fresh else step, "batches": position["batches"]}


def _report(old, new, migration, how, step, params, before, batch) -> dict[str, Any]:
    """How far logits moved, with evaluation's and with training's routing, and why."""
    matrix = params.get("decoder.head", params["decoder.embedding"])
    patches = new.config.model.num_patches
    layout = Layout.create(batch.tokens, batch.pictures.shape[1] * patches)
    weight = layout.text(batch.text().astype(jnp.float32))
    moved = {}
    for train in (False, True):
        key = jax.random.key(new.config.seed) if train else None
        after, _ = drift.hidden(new.blueprint, params, batch, new.mesh, key)
        distance = float(drift.distance(after, before, matrix, weight))
        moved["training" if train else "evaluation"] = {
            "moved": distance,
            "because": list(_reasons(migration, how, train)),
        }
    return {
        "source": str(old.workdir),
        "step": step,
        **dataclasses.asdict(how),
        "parameters": new.blueprint.num_parameters(),
        "active_parameters": new.blueprint.num_active_parameters(),
        "source_parameters": old.blueprint.num_parameters(),
        "logits": moved,
    }


def _reasons(migration: Migration, how: Upcycling, train: bool) -> Iterator[str]:
    for part in PARTS:
        if migration.upcycled(part):
            options, width = migration.options(part), migration.dense_width(part)
            for reason in methods.preserves(how, options, width, train=train):
                yield f"{part}: {reason}"


def _step(source: Path, c: Config, step: int | None) -> int:
    directory = source / "checkpoints"
    if not directory.is_dir():
        raise UserError(f"--source: {directory}: no such folder; was this run trained?")
    checkpoints = Checkpoints(directory, c.checkpoint, read_only=True)
    try:
        have = checkpoints.steps()
    finally:
        checkpoints.close()
    if not have:
        raise UserError(f"--source: {directory}: no checkpoint here")
    if step is not None and step not in have:
        listed = ", ".join(map(str, have))
        raise UserError(f"--step: {directory} has no checkpoint {step}; it has {listed}")
    return have[-1] if step is None else step


def _restore(run: Run, shapes: TrainState, step: int) -> tuple[TrainState, dict[str, Any]]:
    checkpoints = Checkpoints(run.workdir / "checkpoints", run.config.checkpoint, read_only=True)
    try:
        found = checkpoints.restore(shapes, step)
    finally:
        checkpoints.close()
    if found is None:
        raise UserError(f"--step: {checkpoints.directory} has no checkpoint {step} any more")
    return found


def _position(old: Config, new: Config, data: dict[str, Any]) -> dict[str, int]:
    """Where the new run begins in the data: behind the parent if it would read the same rows, else
    at the beginning."""
    same = all(getattr(old.data, name) == getattr(new.data, name) for name in _ORDER)
    if not (same and old.seed == new.seed):
        return {"batches": 0}
    size = new.train.batch_size
    begin = pipeline.continued({"batch_size": old.train.batch_size} | data, size)
    return {"batches": begin["start"], "offset": begin["offset"], "batch_size": size}
