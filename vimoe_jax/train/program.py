"""A configuration's training on a mesh, before anything runs: optimizer, state, compiled step."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import optax

from vimoe_jax.config import Config
from vimoe_jax.config.parts import part_name
from vimoe_jax.model.blueprint import Blueprint
from vimoe_jax.parallel.rules import AnyMesh
from vimoe_jax.run import state as state_lib
from vimoe_jax.run.state import TrainState
from vimoe_jax.train import optim
from vimoe_jax.train.step import make_train_step


@dataclasses.dataclass(frozen=True, eq=False)
class Program:
    """What the loop, plans, converters and benchmarks all begin with.

    Attributes:
      config: the run's.
      blueprint: the model's.
      mesh: where everything lies; an abstract one for shapes alone.
      trainable: names of the parameters that the optimizer changes.
      tx: the optimizer over them.
    """

    config: Config
    blueprint: Blueprint
    mesh: AnyMesh
    trainable: frozenset[str]
    tx: optax.GradientTransformation

    @classmethod
    def create(
        cls,
        c: Config,
        blueprint: Blueprint,
        mesh: AnyMesh,
        tx: optax.GradientTransformation | None = None,
    ) -> Program:
        """The configured optimizer, or another, over the parts whose rate is not 0."""
        axes = blueprint.axes()
        trainable = {n for n in axes if c.optim.rate(part_name(n)) > 0} - blueprint.buffers()
        tx = tx or optim.make(c.optim, c.train.steps, {n: axes[n] for n in sorted(trainable)})
        return cls(c, blueprint, mesh, frozenset(trainable), tx)

    @functools.cached_property
    def shardings(self) -> TrainState:
        """Where every array of the state lies."""
        return state_lib.shardings(self.blueprint, self.tx, self.trainable, self.mesh)

    def abstract(self) -> TrainState:
        """Shape, dtype and sharding of every array of the state; none is made."""
        shapes = jax.eval_shape(self.state, self.blueprint.abstract(self.mesh))
        return jax.tree.map(
            lambda s, at: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=at),
            shapes,
            self.shardings,
        )

    def state(self, params: dict[str, jax.Array]) -> TrainState:
        """The state at step 0 with these parameters (while tracing)."""
        return state_lib.create(params, self.tx, self.trainable)

    def init(self, key: jax.Array) -> TrainState:
        """The state at step 0 with random parameters, born where it lies."""

        def create(key: jax.Array) -> TrainState:
            return self.state(self.blueprint.init(key))

        return jax.jit(create, out_shardings=self.shardings)(key)

    def step(self, parent: Blueprint | None = None) -> Callable[..., Any]:
        """`train.step.make_train_step`, to be compiled at its first call or by `lower`."""
        return jax.jit(
            make_train_step(self.config, self.blueprint, self.tx, self.mesh, parent),
            donate_argnums=0,
            out_shardings=(self.shardings, None),
        )
