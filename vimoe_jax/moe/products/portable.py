"""Grouped products through XLA alone: right everywhere, and quick enough without kernels."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from vimoe_jax.moe.products.segments import Segments

# Bytes that the matrices of the tiles multiplied at once may take, each tile having its own copy.
_AT_ONCE = 1 << 26


def rows(
    x: Float[Array, "R I"], w: Float[Array, "E A B"], segments: Segments, *, transposed: bool
) -> Float[Array, "R O"]:
    """`out[r] = x[r] @ w[expert of r]`: tiles as a batch, each with a copy of its matrix.

    Args:
      x: rows in their experts' order.
      w: a matrix per expert, (I, O), or (O, I) if `transposed`.
      segments: which rows are whose.
      transposed: multiply by the matrices' transposes.
    """
    columns = w.shape[1] if transposed else w.shape[2]
    form = "trd,tfd->trf" if transposed else "trd,tdf->trf"

    def step(first, count: int, out):
        expert = jax.lax.dynamic_slice_in_dim(segments.expert, first, count)
        rows = _tiles(x, first, count, segments)
        result = jnp.einsum(form, rows, _copies(w, expert), preferred_element_type=jnp.float32)
        result = result.astype(x.dtype).reshape(-1, columns)
        return jax.lax.dynamic_update_slice_in_dim(out, result, first * segments.tile, 0)

    out = jnp.zeros((x.shape[0], columns), x.dtype)
    return _in_chunks(step, out, w, segments)


def weights(
    x: Float[Array, "R D"], d_out: Float[Array, "R F"], segments: Segments
) -> Float[Array, "E D F"]:
    """`out[e] = x[rows of e]ᵀ @ d_out[rows of e]`: each tile's product, summed in float32."""
    num_experts = segments.sizes.shape[0]
    out = jnp.zeros((num_experts, x.shape[1], d_out.shape[1]), jnp.float32)

    def step(first, count: int, out):
        expert = jax.lax.dynamic_slice_in_dim(segments.expert, first, count)
        left, right = (_tiles(a, first, count, segments) for a in (x, d_out))
        each = jnp.einsum("trd,trf->tdf", left, right, preferred_element_type=jnp.float32)
        mine = expert == jnp.arange(num_experts)[:, None]
        total = mine.astype(jnp.float32) @ each.reshape(count, -1)
        return out + total.reshape(out.shape)

    return _in_chunks(step, out, out, segments).astype(x.dtype)


def _in_chunks(step, out, matrices, segments: Segments):
    """`out = step(first tile, number of tiles, out)` over all tiles in use, in as few steps as fit.

    If one step is enough there is no loop: XLA on CPU runs a loop's products on one thread.
    """
    tiles = segments.expert.shape[0]
    each = matrices[0].size * 4
    count = max(1, min(tiles, _AT_ONCE // each))
    if count == tiles:
        return step(0, tiles, out)

    def body(i, out):
        return step(i * count, count, out)

    whole = tiles // count
    out = jax.lax.fori_loop(0, jnp.minimum(whole, -(-segments.used[0] // count)), body, out)
    return step(whole * count, tiles % count, out) if tiles % count else out


def _tiles(x: Float[Array, "R D"], first, count: int, segments: Segments):
    """Some row tiles, (count, tile, D)."""
    rows = jax.lax.dynamic_slice_in_dim(x, first * segments.tile, count * segments.tile)
    return rows.reshape(count, segments.tile, -1)


def _copies(w: Float[Array, "E D F"], expert: Int[Array, "tiles"]) -> Float[Array, "tiles D F"]:
    """`w[expert]`; for few experts a product with one-hot rows, which XLA on CPU does faster."""
    if jax.default_backend() != "cpu" or w.shape[0] > 32 or w.dtype != jnp.float32:
        return w[expert]
    one_hot = jax.nn.one_hot(expert, w.shape[0], dtype=w.dtype)
    copies = jnp.matmul(one_hot, w.reshape(w.shape[0], -1), precision="highest")
    return copies.reshape(-1, *w.shape[1:])
