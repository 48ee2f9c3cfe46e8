"""What a step turns into the next: step number, parameters, optimizer state, health."""

from __future__ import annotations

from collections.abc import Set
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int

from vimoe_jax.base import struct
from vimoe_jax.model.blueprint import Blueprint, Params
from vimoe_jax.parallel import rules
from vimoe_jax.parallel.rules import AnyMesh

WINDOW = 128  # losses that a spike is measured against; judged from half of them on


@struct.dataclass
class Health:
    """What is remembered of the steps so far.

    Attributes:
      losses: the last finite losses, in a ring.
      seen: how many there have been.
      skipped: updates skipped in all.
      streak: updates skipped in a row, up to the last step.
    """

    losses: Float[Array, "W"]
    seen: Int[Array, ""]
    skipped: Int[Array, ""]
    streak: Int[Array, ""]

    @classmethod
    def create(cls) -> Health:
        """Before the first step."""
        # Each an array of its own: the step is given them to write into, and no buffer twice.
        return cls(jnp.zeros(WINDOW, jnp.float32), *(jnp.zeros((), jnp.int32) for _ in range(3)))


@struct.dataclass
class TrainState:
    """Everything that training changes; float32 master weights.

    Attributes:
      step: batches read, also those whose update was skipped.
      params: trainable parameters by dotted path.
      frozen: the others; no gradient is taken and no moments are kept for them. Router biases are
        among them: each step moves them by the load it saw.
      opt_state: of the optimizer, over `params`.
      health: of the steps so far.
    """

    step: Int[Array, ""]
    params: Params
    frozen: Params
    opt_state: Any
    health: Health

    def all_params(self) -> dict[str, Any]:
        """Trainable and frozen together: arrays, or what stands for them in this tree."""
        return {**self.params, **self.frozen}


def create(params: Params, tx: optax.GradientTransformation, trainable: Set[str]) -> TrainState:
    """A state at step 0."""
    mine = {n: p for n, p in params.items() if n in trainable}
    rest = {n: p for n, p in params.items() if n not in trainable}
    return TrainState(jnp.zeros((), jnp.int32), mine, rest, tx.init(mine), Health.create())


def shardings(
    blueprint: Blueprint, tx: optax.GradientTransformation, trainable: Set[str], mesh: AnyMesh
) -> TrainState:
    """The sharding of every array of a state: moments lie where their parameter lies."""
    axes, sizes = blueprint.axes(), blueprint.shapes()
    everywhere = NamedSharding(mesh, PartitionSpec())
    kept = blueprint.shardings(mesh)
    # What no step changes has no moments to split, and need not be gathered again each time.
    between = blueprint.shardings(mesh, rules.BETWEEN)

    def place(path: tuple[Any, ...], leaf: jax.ShapeDtypeStruct) -> NamedSharding:
        keys = (k.key for k in path if isinstance(k, jax.tree_util.DictKey))
        name = next((k for k in keys if k in sizes), None)
        if name is None:
            return everywhere
        if leaf.shape == sizes[name]:
            return kept[name] if name in trainable else between[name]
        of_leaf = _reduced(axes[name], sizes[name], leaf.shape)
        return rules.sharding(of_leaf, leaf.shape, mesh, rules.KEPT)

    params = blueprint.abstract(mesh)
    shapes = jax.eval_shape(lambda params: create(params, tx, trainable), params)
    return jax.tree_util.tree_map_with_path(place, shapes)


def _reduced(axes: rules.Axes, shape: tuple[int, ...], reduced: tuple[int, ...]) -> rules.Axes:
    """The axes of a statistic over one of a parameter's axes; none where it is no such thing."""
    for i in range(len(shape)):
        if (*shape[:i], *shape[i + 1 :]) == reduced:
            return (*axes[:i], *axes[i + 1 :])
    return (None,) * len(reduced)
