"""Rows of a table that is split over devices."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from vimoe_jax.parallel.rules import KEPT, active_mesh, constrain, gather, spec

TABLE = ("vocab", "embed")


def lookup(table: Float[Array, "V D"], tokens: Int[Array, "B S"]) -> Float[Array, "B S D"]:
    """`table[tokens]` on the active mesh, the batch split.

    What travels is the smaller: the table to all devices and its gradient back, or all tokens to
    each piece of the table and their rows back (Shoeybi et al. 2019, arXiv:1909.08053).

    Args:
      table: split as parameters are kept.
      tokens: in [0, V).
    """
    mesh = active_mesh()
    if mesh is None:
        return jnp.take(table, tokens, axis=0)
    where = spec(TABLE, table.shape, mesh, KEPT)
    parts, columns = map(_names, where)
    if not parts or columns or tokens.size >= table.shape[0]:
        rows = jnp.take(gather(table, TABLE), tokens, axis=0)
        return constrain(rows, ("batch", None, None))
    split = spec(("batch", None), tokens.shape, mesh)
    shared = tuple(axis for axis in _names(split[0]) if axis in parts)
    others = tuple(axis for axis in parts if axis not in shared)

    def device(table: jax.Array, tokens: jax.Array) -> jax.Array:
        if shared:
            tokens = jax.lax.all_gather(tokens, shared, axis=0, tiled=True)
        place = tokens - jax.lax.axis_index(parts) * table.shape[0]
        # Below 0 would count from the end.
        place = jnp.where(place < 0, table.shape[0], place)
        rows = jnp.take(table, place, axis=0, mode="fill", fill_value=0)
        rows = jax.lax.psum(rows, others) if others else rows
        if not shared:
            return rows
        return jax.lax.psum_scatter(rows, shared, scatter_dimension=0, tiled=True)

    return jax.shard_map(
        device, mesh=mesh, in_specs=(where, split), out_specs=split, check_vma=False
    )(table, tokens)


def _names(entry: str | tuple[str, ...] | None) -> tuple[str, ...]:
    """The mesh axes of a dimension: JAX writes one alone without its tuple."""
    return (entry,) if isinstance(entry, str) else entry or ()
