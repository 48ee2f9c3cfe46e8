"""Parameters that carry the names of their logical axes."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from vimoe_jax.parallel import rules

Initializer = Callable[..., jax.Array]


class Buffer(nnx.Variable):
    """State that is saved with the parameters but that no gradient and no optimizer touches."""


def param(
    rngs: nnx.Rngs,
    init: Initializer,
    shape: tuple[int, ...],
    axes: rules.Axes,
    *,
    cast: bool = False,
) -> nnx.Param:
    """A float32 parameter whose `axes` metadata names each dimension (None: never split).

    `cast` marks the matrices that layers use in the compute dtype only: all of them can be cast at
    once, before a scan over layers cuts them into slices.
    """
    if len(shape) != len(axes):
        raise ValueError(f"{len(axes)} axes {axes} for a parameter of shape {shape}")
    return nnx.Param(init(rngs.params(), shape, jnp.float32), axes=axes, cast=cast)


def fan_in(features: int, scale: float = 1.0) -> Initializer:
    """Truncated normal of standard deviation scale/√features (LeCun)."""
    return jax.nn.initializers.truncated_normal(scale / features**0.5 / 0.87962566)


def shardings(state: nnx.State, mesh: Mesh) -> nnx.State:
    """For each parameter of a (possibly abstract) state, its NamedSharding by the rules."""
    return jax.tree.map(
        lambda p: p.replace(rules.sharding(p.get_metadata("axes"), p.shape, mesh)),
        state,
        is_leaf=lambda p: isinstance(p, nnx.Variable),
    )
