"""Grouped matrix products on Hopper GPUs (sm_90a), in Pallas' Mosaic GPU dialect.

Rows come sorted by expert, each expert's rows padded to whole tiles of `ROWS`. So every row tile
belongs to one expert, named by a table, and the inner loops know nothing of ragged edges:

* `rows`: `out[tile] = lhs[tile] @ rhs[expert of tile]`, for the forward pass and the inputs'
  gradient;
* `gated`: the same with two right sides and SwiGLU in the epilogue, which saves reading the two
  results back from memory;
* `gated_backward`: the product by the transpose and SwiGLU's gradients, in one pass too;
* `weights`: `out[e] = lhs[rows of e]ᵀ @ rhs[rows of e]`, for the weights' gradient; zero for an
  expert without rows.

An output tile is computed by one CTA (`products.mosaic`) with float32 accumulators. An order of
output tiles that stays within a few row tiles keeps an expert's weights in the L2 cache.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxtyping import Array, Float, Int

from vimoe_jax.moe.products import mosaic
from vimoe_jax.moe.products.mosaic import Job, block, place, write

# Exported in fact, but not by name.
_Accumulator: Any = getattr(plgpu, "ACC")  # noqa: B009

ROWS = 128  # of a row tile; every expert's rows are padded to a multiple


@dataclasses.dataclass(frozen=True)
class Tiles:
    """How a product is cut up.

    Attributes:
      rows: of an output tile; 64 only where every expert gets the same few tokens.
      columns: of an output tile.
      inner: length of the contraction taken in one step.
      stages: steps whose operands are in shared memory at once.
      width: row tiles that are worked on together before the next ones.
    """

    rows: int = ROWS
    columns: int = 256
    inner: int = 64
    stages: int = 4
    width: int = 8


def supported() -> bool:
    """Whether the default device is a Hopper GPU."""
    device = jax.devices()[0]
    return device.platform == "gpu" and str(getattr(device, "compute_capability", "")) == "9.0"


def _sigmoid(x: jax.Array) -> jax.Array:
    return 1 / (1 + jnp.exp(-x))


def rows(
    lhs: Float[Array, "R I"],
    rhs: Float[Array, "E A B"],
    expert: Int[Array, "tiles"],
    tiles: Int[Array, "1"],
    *,
    transposed: bool = False,
    one_each: bool = False,
    cut: Tiles = Tiles(),
) -> Float[Array, "rows O"]:
    """`out[tile] = lhs[tile] @ rhs[expert[tile]]` for the first `tiles[0]` row tiles.

    Args:
      lhs: bfloat16 or float16 rows, R a multiple of `ROWS`.
      rhs: a matrix per expert, (I, O), or (O, I) if `transposed`.
      expert: of each row tile.
      tiles: number of row tiles in use; what lies behind them is left unwritten.
      transposed: multiply with each matrix's transpose.
      one_each: no expert has more than one row tile, and R is as long as there are experts: results
        are written to the row tile of the expert's number.
      cut: sizes of tiles.
    """
    dtype = lhs.dtype
    columns = rhs.shape[1] if transposed else rhs.shape[2]
    half = cut.columns // 2
    across, steps = columns // cut.columns, lhs.shape[1] // cut.inner

    def body(expert_ref, tiles_ref, lhs_ref, rhs_ref, out_ref, smem):
        wg, used = lax.axis_index("wg"), tiles_ref[0]

        def specs(m, n):
            if transposed:
                right = block(cut.columns, cut.inner, lambda k: (n, k), dtype)
            else:
                right = block(cut.inner, cut.columns, lambda k: (k, n), dtype)
            return [block(cut.rows, cut.inner, lambda k: (m, k), dtype), right]

        def multiply(_, left, right, acc):
            mine = pl.ds(wg * half, half)
            right = right.at[mine].transpose((1, 0)) if transposed else right.at[:, mine]
            plgpu.wgmma(acc, left, right)
            plgpu.wgmma_wait(0)
            return acc

        def job(number):
            m, n = place(number, used, across, cut.width)

            def finish(run):
                @functools.partial(pl.run_scoped, acc=_Accumulator((cut.rows, half), jnp.float32))
                def _(acc):
                    run(acc)
                    column = n * cut.columns + wg * half
                    tile = expert_ref[m] if one_each else m
                    write(acc[...], out_ref, smem.at[wg], tile * cut.rows, column)

            operands = (lhs_ref, rhs_ref.at[expert_ref[m]])
            return Job(specs(m, n), operands, steps, multiply, finish)

        outline = Job(specs(0, 0), (lhs_ref, rhs_ref.at[0]), steps)
        mosaic.output_tiles(used * across, job, outline, cut.stages)

    out_type = jax.ShapeDtypeStruct((lhs.shape[0], columns), dtype)
    name = "rows_transposed" if transposed else "rows"
    return mosaic.kernel(name, body, out_type)(expert, tiles, lhs, rhs)


def gated(
    lhs: Float[Array, "R D"],
    rhs: Float[Array, "E D 2 F"],
    expert: Int[Array, "tiles"],
    tiles: Int[Array, "1"],
    *,
    shared: bool = False,
    cut: Tiles = Tiles(),
) -> tuple[Float[Array, "A FF"], Float[Array, "Q F"]]:
    """Gate and up projections and `silu(gate) * up`, in one pass over the rows.

    Arguments as in `rows`; an output tile has `cut.columns // 2` columns of each. With `shared`,
    `lhs` is one row tile that every expert gets, and R is as long as `expert` has tiles; only
    silu(gate)·up is written then.

    Returns:
      gate and up side by side, (R, 2·F), for the backward pass; silu(gate)·up, (R, F).
    """
    dtype = lhs.dtype
    num_experts, inner, _, columns = rhs.shape
    half = cut.columns // 2
    # Warpgroups share out the rows, or where these are too few for two, the columns.
    by_rows = cut.rows == ROWS
    part = (cut.rows // 2, half) if by_rows else (cut.rows, half // 2)
    across, steps = columns // half, inner // cut.inner

    def body(expert_ref, tiles_ref, lhs_ref, rhs_ref, both_ref, out_ref, smem):
        wg, used = lax.axis_index("wg"), tiles_ref[0]

        def specs(m, n):
            return [
                block(cut.rows, cut.inner, lambda k: (0 if shared else m, k), dtype),
                block(cut.inner, half, lambda k: (k, n), dtype),
                block(cut.inner, half, lambda k: (k, n + across), dtype),
            ]

        def multiply(_, left, right_gate, right_up, acc):
            if by_rows:
                left = left.at[pl.ds(wg * part[0], part[0])]
            else:
                mine = pl.ds(wg * part[1], part[1])
                right_gate, right_up = right_gate.at[:, mine], right_up.at[:, mine]
            plgpu.wgmma(acc[0], left, right_gate)
            plgpu.wgmma(acc[1], left, right_up)
            plgpu.wgmma_wait(0)
            return acc

        def job(number):
            m, n = place(number, used, across, cut.width)

            def finish(run):
                acc = _Accumulator(part, jnp.float32)

                @functools.partial(pl.run_scoped, gate=acc, up=acc)
                def _(gate, up):
                    run((gate, up))
                    gate, up = gate[...], up[...]
                    row, column = m * cut.rows, n * half
                    if by_rows:
                        row += wg * part[0]
                    else:
                        column += wg * part[1]
                    if not shared:
                        write(gate, both_ref, smem.at[wg], row, column)
                        write(up, both_ref, smem.at[wg], row, columns + column)
                    write(gate * _sigmoid(gate) * up, out_ref, smem.at[wg], row, column)

            right = rhs_ref.at[expert_ref[m]]
            return Job(specs(m, n), (lhs_ref, right, right), steps, multiply, finish)

        outline = Job(specs(0, 0), (lhs_ref, rhs_ref.at[0], rhs_ref.at[0]), steps)
        mosaic.output_tiles(used * across, job, outline, cut.stages)

    num_rows = expert.shape[0] * cut.rows
    both = jax.ShapeDtypeStruct((cut.rows if shared else num_rows, 2 * columns), dtype)
    out = jax.ShapeDtypeStruct((num_rows, columns), dtype)
    flat = rhs.reshape(num_experts, inner, 2 * columns)
    return mosaic.kernel("gated", body, (both, out))(expert, tiles, lhs, flat)


def gated_backward(
    d_out: Float[Array, "R D"],
    rhs: Float[Array, "E F D"],
    both: Float[Array, "R FF"],
    expert: Int[Array, "tiles"],
    tiles: Int[Array, "1"],
    *,
    cut: Tiles = Tiles(stages=2),
) -> Float[Array, "R FF"]:
    """Gradients of gate and up from that of `silu(gate)·up @ rhs`.

    The product `d_out @ rhsᵀ` stays in registers; gate and up are fetched while it is computed, and
    overwritten in shared memory by their gradients.

    Args:
      d_out: gradient of the experts' outputs.
      rhs: the output projections.
      both: gate and up from `gated`.
      expert: of each row tile.
      tiles: number of row tiles in use.
      cut: sizes of tiles; two stages leave room for gate and up.
    """
    dtype, columns = d_out.dtype, rhs.shape[1]
    half = cut.columns // 2
    across, steps = columns // cut.columns, d_out.shape[1] // cut.inner
    size = mosaic.EPILOGUE
    blocks = [(i, j) for i in range(ROWS // size) for j in range(half // size)]

    def body(expert_ref, tiles_ref, d_out_ref, rhs_ref, both_ref, d_both_ref, smem, loaded):
        wg, used = lax.axis_index("wg"), tiles_ref[0]

        def specs(m, n):
            return [
                block(ROWS, cut.inner, lambda k: (m, k), dtype),
                block(cut.columns, cut.inner, lambda k: (n, k), dtype),
            ]

        def job(number):
            m, n = place(number, used, across, cut.width)

            def part(ref, which, i, j):
                column = which * columns + n * cut.columns + wg * half + j * size
                return ref.at[pl.ds(m * ROWS + i * size, size), pl.ds(column, size)]

            def multiply(index, left, right, acc):
                # Half-way, the last tile's results have left shared memory.
                @pl.when(index[0] == steps // 2)
                def _():
                    plgpu.wait_smem_to_gmem(0, wait_read_only=True)
                    for b, (i, j) in enumerate(blocks):
                        for which in range(2):
                            source = part(both_ref, which, i, j)
                            plgpu.copy_gmem_to_smem(source, smem.at[wg, b, which], loaded.at[wg])

                plgpu.wgmma(acc, left, right.at[pl.ds(wg * half, half)].transpose((1, 0)))
                plgpu.wgmma_wait(0)
                return acc

            def finish(run):
                @functools.partial(pl.run_scoped, acc=_Accumulator((ROWS, half), jnp.float32))
                def _(acc):
                    run(acc)
                    d_hidden = acc[...]
                    plgpu.barrier_wait(loaded.at[wg])
                    for b, (i, j) in enumerate(blocks):
                        rows, cols = (
                            slice(i * size, (i + 1) * size),
                            slice(j * size, (j + 1) * size),
                        )
                        d = d_hidden[rows, cols]
                        gate = smem[wg, b, 0].astype(jnp.float32)
                        up = smem[wg, b, 1].astype(jnp.float32)
                        share = _sigmoid(gate)
                        silu = gate * share
                        smem[wg, b, 0] = (d * up * (share + silu * (1 - share))).astype(dtype)
                        smem[wg, b, 1] = (d * silu).astype(dtype)
                        plgpu.commit_smem()
                        for which in range(2):
                            plgpu.copy_smem_to_gmem(
                                smem.at[wg, b, which], part(d_both_ref, which, i, j)
                            )

            operands = (d_out_ref, rhs_ref.at[expert_ref[m]])
            return Job(specs(m, n), operands, steps, multiply, finish)

        outline = Job(specs(0, 0), (d_out_ref, rhs_ref.at[0]), steps)
        mosaic.output_tiles(used * across, job, outline, cut.stages)

    out_type = jax.ShapeDtypeStruct(both.shape, dtype)
    scratch = dict(
        smem=plgpu.SMEM(
            (2, len(blocks), 2, size, size), dtype, transforms=mosaic.transforms(size, dtype)
        ),
        loaded=plgpu.Barrier(num_arrivals=2 * len(blocks), num_barriers=2),
    )
    return mosaic.kernel("gated_backward", body, out_type, **scratch)(
        expert, tiles, d_out, rhs, both
    )


def weights(
    lhs: Float[Array, "R D"],
    rhs: Float[Array, "R F"],
    sizes: Int[Array, "E"],
    *,
    cut: Tiles = Tiles(),
) -> Float[Array, "E D F"]:
    """`out[e] = lhs[rows of e]ᵀ @ rhs[rows of e]`; zeros for an expert without rows.

    Args:
      lhs: bfloat16 or float16 rows; padding rows must be finite, and zero here or in `rhs`.
      rhs: as many rows.
      sizes: rows of each expert, padding included: multiples of `ROWS`.
      cut: sizes of tiles; `inner` counts rows.
    """
    dtype, num_experts = lhs.dtype, sizes.shape[0]
    half = cut.columns // 2
    down, across = lhs.shape[1] // ROWS, rhs.shape[1] // cut.columns
    starts = jnp.cumsum(sizes) - sizes

    def body(starts_ref, sizes_ref, lhs_ref, rhs_ref, out_ref, smem):
        wg = lax.axis_index("wg")

        def specs(first, m, n):
            return [
                block(cut.inner, ROWS, lambda k: (first + k, m), dtype),
                block(cut.inner, cut.columns, lambda k: (first + k, n), dtype),
            ]

        def multiply(_, left, right, acc):
            plgpu.wgmma(acc, left.transpose((1, 0)), right.at[:, pl.ds(wg * half, half)])
            plgpu.wgmma_wait(0)
            return acc

        def job(number):
            e = lax.div(number, jnp.int32(down * across))
            m, n = place(lax.rem(number, jnp.int32(down * across)), down, across, cut.width)

            def finish(run):
                @functools.partial(pl.run_scoped, acc=_Accumulator((ROWS, half), jnp.float32))
                def _(acc):
                    run(acc)
                    column = n * cut.columns + wg * half
                    write(acc[...], out_ref.at[e], smem.at[wg], m * ROWS, column)

            first = lax.div(starts_ref[e], jnp.int32(cut.inner))
            steps = lax.div(sizes_ref[e], jnp.int32(cut.inner))
            return Job(specs(first, m, n), (lhs_ref, rhs_ref), steps, multiply, finish)

        outline = Job(specs(0, 0, 0), (lhs_ref, rhs_ref), jnp.int32(0))
        mosaic.output_tiles(num_experts * down * across, job, outline, cut.stages)

    out_type = jax.ShapeDtypeStruct((num_experts, lhs.shape[1], rhs.shape[1]), dtype)
    return mosaic.kernel("weights", body, out_type)(starts, sizes, lhs, rhs)
