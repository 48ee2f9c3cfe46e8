"""What a step turns into the next: step number, parameters, optimizer state."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Int

from vimoe_jax.model.blueprint import Blueprint, Params


@struct.dataclass
class TrainState:
    """Everything that training changes; float32 master weights.

    Attributes:
      step: optimizer steps done.
      params: trainable parameters by dotted path.
      frozen: the others; no gradient is taken and no moments are kept for them. Router biases are
        among them: each step moves them by the load it saw.
      opt_state: of the optimizer, over `params`.
    """

    step: Int[Array, ""]
    params: Params
    frozen: Params
    opt_state: Any

    def all_params(self) -> Params:
        """Trainable and frozen together."""
        return {**self.params, **self.frozen}


def create(params: Params, tx: optax.GradientTransformation, trainable: set[str]) -> TrainState:
    """A state at step 0."""
    mine = {n: p for n, p in params.items() if n in trainable}
    rest = {n: p for n, p in params.items() if n not in trainable}
    return TrainState(jnp.zeros((), jnp.int32), mine, rest, tx.init(mine))


def shardings(
    blueprint: Blueprint, tx: optax.GradientTransformation, trainable: set[str], mesh: Mesh
) -> TrainState:
    """The sharding of every array of a state: moments lie where their parameter lies."""
    where = blueprint.shardings(mesh)
    everywhere = NamedSharding(mesh, PartitionSpec())
    mine = {n: where[n] for n in where if n in trainable}
    rest = {n: where[n] for n in where if n not in trainable}
    shapes = {n: jax.ShapeDtypeStruct(blueprint.shapes()[n], jnp.float32) for n in mine}
    opt_state = optax.tree.map_params(
        tx,
        lambda _, sharding: sharding,
        jax.eval_shape(tx.init, shapes),
        mine,
        transform_non_params=lambda _: everywhere,
    )
    return TrainState(everywhere, mine, rest, opt_state)
