"""Rows moved by index, from tokens to experts and back.

Each token knows its K rows and each row its token, so that the backward pass is made of gathers too
(the automatic one would scatter-add).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

# Names, for rematerialisation, of what has come to the experts and of what has come back: while
# these are kept, the backward pass exchanges nothing again.
MOVED = ("moe_dispatched", "moe_returned")


def invert(row: Int[Array, "G M K"], rows: int) -> Int[Array, "G R"]:
    """For each row the choice (token·K + k) it holds, or M·K if none."""
    flat = row.reshape(row.shape[0], -1)
    num = flat.shape[1]

    def invert_one(row: Int[Array, "MK"]) -> Int[Array, "R"]:
        empty = jnp.full((rows,), num, jnp.int32)
        return empty.at[row].set(jnp.arange(num, dtype=jnp.int32), mode="drop")

    return jax.vmap(invert_one)(flat)


def _take(table: Float[Array, "G N D"], index: Int[Array, "G *any"]) -> Float[Array, "G *any D"]:
    """Gathers rows within each group; an index of N or more gives a row of zeros."""
    flat = index.reshape(index.shape[0], -1)
    rows = jax.vmap(lambda t, i: jnp.take(t, i, axis=0, mode="fill", fill_value=0))(table, flat)
    return rows.reshape(*index.shape, table.shape[-1])


@jax.custom_vjp
def to_rows(
    x: Float[Array, "G M D"],
    slot_of_choice: Int[Array, "G M K"],
    choice_of_slot: Int[Array, "G EC"],
) -> Float[Array, "G EC D"]:
    """Copies each token into its choices' rows; rows without a choice are zero."""
    # The sentinel M·K divides to M, which is out of range: a zero row.
    return _take(x, choice_of_slot // slot_of_choice.shape[-1])


def _to_rows_fwd(x, slot_of_choice, choice_of_slot):
    return to_rows(x, slot_of_choice, choice_of_slot), slot_of_choice


def _to_rows_bwd(slot_of_choice, d_buffers):
    # A token's gradient is the sum over its own K slots: a gather, where autodiff would scatter.
    d_x = _take(d_buffers, slot_of_choice).astype(jnp.float32).sum(2)
    return d_x.astype(d_buffers.dtype), None, None


to_rows.defvjp(_to_rows_fwd, _to_rows_bwd)


@jax.custom_vjp
def from_rows(
    out: Float[Array, "G EC D"],
    weight: Float[Array, "G M K"],
    slot_of_choice: Int[Array, "G M K"],
    choice_of_slot: Int[Array, "G EC"],
) -> Float[Array, "G M D"]:
    """Sums each token's rows by weight, in float32."""
    rows = _take(out, slot_of_choice)
    y = jnp.einsum("gmk,gmkd->gmd", weight, rows, preferred_element_type=jnp.float32)
    return y.astype(out.dtype)


def _from_rows_fwd(out, weight, slot_of_choice, choice_of_slot):
    y = from_rows(out, weight, slot_of_choice, choice_of_slot)
    return y, (out, weight, slot_of_choice, choice_of_slot)


def _from_rows_bwd(saved, d_y):
    out, weight, slot_of_choice, choice_of_slot = saved
    k = slot_of_choice.shape[-1]
    rows = _take(out, slot_of_choice)
    d_weight = jnp.einsum("gmd,gmkd->gmk", d_y, rows, preferred_element_type=jnp.float32)
    flat = weight.reshape(weight.shape[0], -1, 1)
    d_out = _take(d_y, choice_of_slot // k).astype(jnp.float32) * _take(flat, choice_of_slot)
    return d_out.astype(out.dtype), d_weight.astype(weight.dtype), None, None


from_rows.defvjp(_from_rows_fwd, _from_rows_bwd)
