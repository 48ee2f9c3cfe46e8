"""How much the loss depends on each hidden unit (MoEBERT, Zuo et al. 2022, §3.1).

  I_j = Σ_samples |w1_jᵀ ∇L + w2_jᵀ ∇L|

w1_j is all that leads into unit j: for SwiGLU its columns of gate and of up together, so that one
sample's term is |Σ_d gate_dj · ∂L/∂gate_dj + Σ_d up_dj · ∂L/∂up_dj + Σ_o down_jo · ∂L/∂down_jo|;
w2_j is its row of down. To first order, this is how far removing unit j moves the sample's loss.
The absolute value is taken for each sample: over a whole batch, opposite signs would cancel. Biases
are left out, as in the paper. A sample is a row, a picture with its questions, and L the mean
cross-entropy of its answers.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from vimoe_jax.data.batch import Batch
from vimoe_jax.model.blueprint import Blueprint, Params
from vimoe_jax.parallel.mesh import to_mesh
from vimoe_jax.parallel.rules import use_mesh


def scores(
    blueprint: Blueprint,
    params: Params,
    mlps: Iterable[str],
    batches: Iterable[Batch],
    mesh: Mesh,
    samples: int,
) -> dict[str, np.ndarray]:
    """Scores of hidden units of a dense model.

    One row's gradients exist at a time, of the named MLPs only.

    Args:
      blueprint: of the dense model.
      params: its parameters, on the mesh.
      mlps: dotted paths of MLPs, such as "decoder.blocks.segments.0.0.mlp".
      batches: of training data, this process's rows.
      mesh: where the parameters lie.
      samples: rows to take at most.

    Returns:
      For each path an array (L, F), or (F,) in the connector, summed over samples.
    """
    mlps = sorted(set(mlps))

    def loss(trained: Params, rest: Params, row: Any) -> jax.Array:
        tokens, _ = blueprint.model({**rest, **trained}).loss(row)
        return tokens.loss / jnp.maximum(tokens.weight, 1)

    @jax.jit
    def add(total: Params, params: Params, batch: Any) -> Params:
        trained = {n: p for n, p in params.items() if _of(n, mlps)}

        def row(total: Params, row: Any) -> tuple[Params, None]:
            row = jax.tree.map(lambda x: x[None], row)
            gradient = jax.grad(loss)(trained, params, row)
            return {p: total[p] + jnp.abs(_terms(trained, gradient, p)) for p in mlps}, None

        with use_mesh(mesh):
            return jax.lax.scan(row, total, batch)[0]

    total = {p: jnp.zeros(_width(params, p), jnp.float32) for p in mlps}
    left = samples
    for batch in batches:
        if left <= 0:
            break
        rows = batch.rows(0, left)
        left -= len(rows.tokens) * jax.process_count()
        total = add(total, params, to_mesh(rows, mesh))
    return jax.device_get(total)


def _of(name: str, mlps: list[str]) -> bool:
    module, _, leaf = name.rpartition(".")
    return module in mlps and leaf in ("w_in", "w_out")


def _terms(weights: Params, gradient: Params, path: str) -> jax.Array:
    """w1_jᵀ∇L + w2_jᵀ∇L of every unit j, (L, F) or (F,)."""

    def product(leaf: str, how: str) -> jax.Array:
        name = f"{path}.{leaf}"
        return jnp.einsum(how, weights[name], gradient[name], precision="highest")

    return product("w_in", "...dif,...dif->...f") + product("w_out", "...fo,...fo->...f")


def _width(params: Params, path: str) -> tuple[int, ...]:
    return params[f"{path}.w_out"].shape[:-1]
