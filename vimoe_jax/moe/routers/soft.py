"""Soft MoE: slots are mixtures of a row's tokens (Puigcerver et al. 2023, alg. 1 and 2)."""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from vimoe_jax.moe.routers.base import Router, Routing
from vimoe_jax.moe.routing import Mixing
from vimoe_jax.parallel.parameters import fan_in, param


class Soft(Router):
    """Mixtures by the cosine of tokens and slots; a group is a row, so that rows never mix.

    Parameters: `slots` (D, E, C) and `slot_scale` ().
    """

    def variables(self, in_dim: int, *, num_ids: int, rngs: nnx.Rngs) -> dict[str, nnx.Variable]:
        """The slots and the scale of their cosines."""
        del num_ids
        o = self.options
        shape = (in_dim, o.experts, o.soft_slots)
        return {
            "slots": param(rngs, fan_in(in_dim), shape, ("embed", "experts", None)),
            "slot_scale": param(rngs, nnx.initializers.ones, (), ()),
        }

    def group_size(self, row: int) -> int:
        """The row's length."""
        return row

    def slots(self, tokens: int, *, train: bool) -> int:
        """As many as the options say, for any number of tokens."""
        del tokens, train
        return self.options.soft_slots

    def route(
        self,
        values: Mapping[str, jax.Array],
        x: Float[Array, "G M D"],
        valid: Bool[Array, "G M"],
        *,
        ids: Int[Array, "G M"] | None,
        key: jax.Array | None,
    ) -> Routing:
        """Softmaxes of the scaled cosines."""
        del ids, key
        slots = values["slot_scale"] * _unit(values["slots"], 0)
        logits = jnp.einsum("gmd,dec->gmec", _unit(x, -1), slots, precision="highest")
        mixing = mix(logits, valid)
        return Routing(mixing, mixing.combine.sum(-1), {})


def _unit(a: jax.Array, axis: int) -> jax.Array:
    """Vectors of length 1, float32."""
    a = a.astype(jnp.float32)
    return a * jax.lax.rsqrt(jnp.sum(jnp.square(a), axis, keepdims=True) + 1e-6)


def mix(logits: Float[Array, "G M E C"], valid: Bool[Array, "G M"] | None = None) -> Mixing:
    """Every slot a mixture of tokens, every token's result one of slots.

    Args:
      logits: affinity of each token and slot, float32.
      valid: False for padding, which is in no mixture.

    Returns:
      `dispatch`, a softmax over the group's tokens; `combine`, a softmax over all slots.
    """
    flat = logits.reshape(*logits.shape[:2], -1)
    combine = jax.nn.softmax(flat, axis=2)
    if valid is None:
        dispatch = jax.nn.softmax(flat, axis=1)
    else:
        mask = valid[..., None]
        # A finite floor, and the mask again after it: a group without tokens gives 0, not NaN.
        dispatch = jax.nn.softmax(jnp.where(mask, flat, -1e30), axis=1) * mask
        combine = combine * mask
    shape = logits.shape
    return Mixing(dispatch.reshape(shape), combine.reshape(shape))
