"""The optimizer's state after upcycling: Adam's moments follow their weights, counts go on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, cast

import jax
import optax

from vimoe_jax.base.errors import UserError
from vimoe_jax.model.blueprint import Params

Shapes = Mapping[str, jax.ShapeDtypeStruct]
_COUNTING = optax.ScaleByScheduleState
_ADAM = optax.ScaleByAdamState


def check(opt_state: Any, whose: str) -> None:
    """That an optimizer's state is one that can be carried over: Adam's and step counts.

    Args:
      opt_state: arrays or shapes.
      whose: what a complaint calls the optimizer.

    Raises:
      UserError: it holds anything else.
    """
    found = jax.tree.leaves(opt_state, is_leaf=_known)
    strange = [x for x in found if not _known(x)]
    if strange or sum(isinstance(x, _ADAM) for x in found) != 1:
        raise UserError(
            f"--fresh_optimizer: needed here: {whose} keeps a state other than Adam's moments, and "
            "only those can be carried over"
        )


def carry(old: Any, new: Any, move: Callable[[Params, Shapes], Params]) -> Any:
    """The new optimizer's state.

    Args:
      old: the dense model's state, as `check` wants it.
      new: the shapes of the new optimizer's state; likewise.
      move: takes a moment of the dense model's parameters to one of the new model's, given its
        shapes.

    Returns:
      `new` with the old step counts and the moved moments.
    """
    known = {type(x): x for x in jax.tree.leaves(old, is_leaf=_known)}
    adam, count = known[_ADAM], known.get(_COUNTING)

    def fill(state: Any) -> Any:
        if isinstance(state, _ADAM):
            mu, nu = cast(tuple[Shapes, Shapes], (state.mu, state.nu))
            return _ADAM(adam.count, move(adam.mu, mu), move(adam.nu, nu))
        return _COUNTING(adam.count) if count is None else count

    return jax.tree.map(fill, new, is_leaf=_known)


def _known(x: Any) -> bool:
    return isinstance(x, _ADAM | _COUNTING)
