"""How far a model's logits lie from its dense parent's, on a batch of real rows."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from vimoe_jax.model.blueprint import Blueprint, Params
from vimoe_jax.model.vlm import compute_dtype
from vimoe_jax.parallel.rules import use_mesh


def hidden(
    blueprint: Blueprint, params: Params, batch: Any, mesh: Mesh, key: jax.Array | None = None
) -> tuple[jax.Array, Any]:
    """Final hidden states (B, S, D) in float32 arithmetic, and the MoE reports.

    Args:
      blueprint: of the model; its compute dtype is not used.
      params: on the mesh.
      batch: on the mesh.
      mesh: of both.
      key: given for training's routing: noise, capacity, dispatcher.
    """
    if compute_dtype(blueprint.config.dtype) != jnp.float32:
        exact = dataclasses.replace(blueprint.config, dtype="float32")
        blueprint = Blueprint.create(exact, blueprint.vocab_size)

    @jax.jit
    def run(params: Params, batch: Any, key: jax.Array | None) -> tuple[jax.Array, Any]:
        with use_mesh(mesh), jax.default_matmul_precision("highest"):
            out = blueprint.build(params)(batch, key=key)
            return out.hidden, out.moe

    return run(params, batch, key)


@jax.jit
def distance(ours: jax.Array, theirs: jax.Array, matrix: jax.Array, weight: jax.Array) -> jax.Array:
    """‖ours − theirs‖ / ‖theirs‖ of logits, from hidden states.

    Args:
      ours: (B, S, D).
      theirs: (B, S, D).
      matrix: (V, D), the output head of both.
      weight: (B, S), 0 where a place does not count.
    """

    def row(total: tuple[jax.Array, jax.Array], xs: Any):
        a, b, w = xs
        a, b = (jnp.einsum("sd,vd->sv", x, matrix, precision="highest") for x in (a, b))
        difference = jnp.sum(jnp.square(a - b) * w[:, None])
        return (total[0] + difference, total[1] + jnp.sum(jnp.square(b) * w[:, None])), None

    zero = jnp.zeros((), jnp.float32)
    (difference, size), _ = jax.lax.scan(row, (zero, zero), (ours, theirs, weight))
    return jnp.sqrt(difference / jnp.maximum(size, 1e-30))
