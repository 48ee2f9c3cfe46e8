"""Parameters that carry the names of their logical axes."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx

from vimoe_jax.parallel import rules
from vimoe_jax.parallel.rules import Axes

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


def gathered(state: nnx.State, over: rules.MeshAxes) -> nnx.State:
    """`rules.gather` of all parameters of a state, stacked over layers or one layer's."""

    def one(p: nnx.Variable) -> nnx.Variable:
        axes = p.get_metadata("axes")
        return p.replace(rules.gather(p[...], axes[len(axes) - p.ndim :], over))

    return jax.tree.map(one, state, is_leaf=lambda p: isinstance(p, nnx.Variable))


# Axes that count copies of a parameter, not its own dimensions.
_COPIES = ("layers", "experts")


def decays(axes: Axes) -> bool:
    """Whether weight decay applies: to matrices, not to norms and biases."""
    return sum(axis not in _COPIES for axis in axes) >= 2


def is_bias(name: str) -> bool:
    """Biases of several heads have two axes, and still are biases."""
    return name.rsplit(".", 1)[-1].startswith("b_") or name.endswith("bias")
