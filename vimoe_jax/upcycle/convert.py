"""A dense model's state to an MoE model's, on the mesh: layouts, parameters, optimizer."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from vimoe_jax.config.parts import PARTS, PartName
from vimoe_jax.data.batch import Batch
from vimoe_jax.model.blueprint import Params
from vimoe_jax.run.state import Health, TrainState
from vimoe_jax.train.program import Program
from vimoe_jax.upcycle import importance, methods, moments, weights
from vimoe_jax.upcycle.methods import Upcycling
from vimoe_jax.upcycle.migration import Migration


def plan(
    migration: Migration,
    how: Upcycling,
    seed: int,
    params: Params,
    batches: list[Batch],
    mesh: Mesh,
) -> weights.Layouts:
    """The layout of every layer that becomes MoE; scores the units first if the method does.

    Args:
      migration: from the dense model to the new one.
      how: the method and its numbers.
      seed: of the units to drop.
      params: of the dense model, on the mesh.
      batches: of training data.
      mesh: of `params`.
    """
    chosen: list[tuple[PartName, int]] = [
        (part, layer) for part in PARTS for layer in migration.upcycled(part)
    ]
    scored: dict[str, np.ndarray] = {}
    if how.method == "importance":
        paths = {migration.mlp(*where)[0] for where in chosen}
        scored = importance.scores(migration.old, params, paths, batches, mesh, how.samples)
    layouts = {}
    for part, layer in chosen:
        path, place = migration.mlp(part, layer)
        own = scored.get(path)
        layouts[part, layer] = methods.layout(
            how,
            migration.options(part),
            migration.dense_width(part),
            np.random.default_rng([seed, PARTS.index(part), layer]),
            own if own is None or place is None else own[place],
        )
    return layouts


def state(
    migration: Migration,
    old: TrainState | None,
    params: Params,
    layouts: weights.Layouts,
    program: Program,
) -> TrainState:
    """The state that training continues from.

    Args:
      migration: from the dense model to the new one.
      old: the dense run's state, whose step and moments go over; None to start afresh.
      params: the new model's parameters, on the mesh.
      layouts: of every upcycled layer.
      program: the new run's, on the mesh of everything.

    Raises:
      UserError: an optimizer whose moments cannot be carried over.
    """
    mine = {n: p for n, p in params.items() if n in program.trainable}
    rest = {n: p for n, p in params.items() if n not in program.trainable}
    step, health = _begun(program)
    if old is None:
        opt_state = jax.jit(program.tx.init, out_shardings=program.shardings.opt_state)(mine)
    else:
        shapes = jax.eval_shape(program.tx.init, mine)
        moments.check(old.opt_state, "the source's optimizer")
        moments.check(shapes, "config.optim")

        def move(moment: Params, like: moments.Shapes) -> Params:
            return weights.upcycle_moments(migration, dict(moment), layouts, program.mesh, like)

        opt_state = moments.carry(old.opt_state, shapes, move)
        step = old.step
    return TrainState(step, mine, rest, opt_state, health)


def _begun(program: Program) -> tuple[jax.Array, Health]:
    """Step and health of a state at step 0."""

    def create() -> tuple[jax.Array, Health]:
        return jnp.zeros((), jnp.int32), Health.create()

    where = program.shardings.step, program.shardings.health
    return jax.jit(create, out_shardings=where)()
