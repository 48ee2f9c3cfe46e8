"""The plumbing of the Hopper kernels: persistent CTAs whose warpgroups copy or multiply.

One CTA per multiprocessor takes output tiles in turn. Warpgroups 0 and 1 multiply, 2 only copies
operands into shared memory (TMA). `output_tiles` runs the loop; what differs between kernels is the
`Job` that each output tile is.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from jax.typing import DTypeLike

EPILOGUE = 64  # rows and columns written back at once


@dataclasses.dataclass(frozen=True)
class Job:
    """One output tile.

    Attributes:
      specs: which blocks of the operands each step takes (`block`).
      operands: in device memory, one a spec.
      steps: of the contraction; if it is known when compiling, copying runs on across the boundary
        between output tiles.
      multiply: (index, *blocks, accumulators) -> accumulators, one step of one warpgroup.
      finish: given a function that runs all steps on accumulators, writes the results.
    """

    specs: Sequence[plgpu.BlockSpec]
    operands: Sequence[Any]
    steps: int | jax.Array
    multiply: Callable[..., Any] = lambda *_: None
    finish: Callable[[Callable[..., Any]], None] = lambda _: None

    def pipeline(self, stages: int, state: jax.Array | None = None):
        """The pipeline over the steps."""
        return plgpu.emit_pipeline_warp_specialized(
            self.multiply,
            grid=(self.steps,),
            memory_registers=40,
            in_specs=list(self.specs),
            wg_axis="wg",
            num_compute_wgs=2,
            max_concurrent_steps=stages,
            pipeline_state=state,
            compute_context=self.finish,
        )


def output_tiles(
    total: jax.Array | int, job: Callable[[jax.Array], Job], outline: Job, stages: int
) -> None:
    """Runs `job(number)` for every number below `total` that falls to this CTA.

    Args:
      total: output tiles of all CTAs.
      job: the work of an output tile.
      outline: any job, for the shapes of its blocks.
      stages: steps whose operands are in shared memory at once.
    """
    sm, count = lax.axis_index("sm"), lax.axis_size("sm")
    turns = lax.div(total - sm + count - 1, jnp.int32(count))
    chained = isinstance(outline.steps, int) and outline.steps % stages == 0
    # The first output tile of a CTA fills the pipeline; later ones find it filled.
    start, steady = plgpu.PipelinePipeline.START, plgpu.PipelinePipeline.STEADY

    def loop(allocations: dict) -> None:
        def step(turn, _):
            work = job(sm + turn * count)
            state = jnp.where(turn == 0, jnp.int32(start), jnp.int32(steady)) if chained else None
            work.pipeline(stages, state)(*work.operands, allocations=allocations)

        lax.fori_loop(0, turns, step, None)
        if chained:
            # Each output tile left its last stages to the next to wait for; the last has no next.
            @pl.when((lax.axis_index("wg") == 2) & (turns > 0))
            def _():
                for barrier in allocations["flat_consumed_barrier_refs"]:
                    for slot in range(barrier.shape[0]):
                        plgpu.barrier_wait(barrier.at[slot])

    allocations = outline.pipeline(stages).get_allocations(*outline.operands)
    pl.run_scoped(loop, allocations, collective_axes="wg")
    plgpu.wait_smem_to_gmem(0, wait_read_only=True)


def multiprocessors() -> int:
    """CTAs that run at once."""
    return getattr(jax.devices()[0], "core_count", None) or 132


def transforms(columns: int, dtype: DTypeLike) -> tuple:
    """The swizzled layout that TMA writes and wgmma reads, for blocks of that many columns."""
    itemsize = jnp.dtype(dtype).itemsize
    swizzle = plgpu.find_swizzle(columns * itemsize * 8)
    return plgpu.TilingTransform((8, swizzle // itemsize)), plgpu.SwizzleTransform(swizzle)


def block(rows: int, columns: int, index_map, dtype: DTypeLike) -> plgpu.BlockSpec:
    """Blocks of an operand, by step of the contraction."""
    return plgpu.BlockSpec((rows, columns), index_map, transforms=transforms(columns, dtype))


def place(number: jax.Array, tiles: jax.Array | int, across: int, width: int):
    """Output tile's number -> (row tile, column tile): `width` row tiles side by side at a time."""
    chunk = lax.div(number, width * across)
    inside = lax.rem(number, width * across)
    high = jnp.minimum(width, tiles - chunk * width)
    return chunk * width + lax.rem(inside, high), lax.div(inside, high)


def write(values: jax.Array, out, smem, row: jax.Array, column: jax.Array) -> None:
    """Registers to device memory, block by block through two buffers in turn.

    Args:
      values: in registers.
      out: the whole output.
      smem: (2, EPILOGUE, EPILOGUE) of this warpgroup.
      row: where the values' first row goes.
      column: where their first column goes.
    """
    size, slot = EPILOGUE, 0
    for i in range(0, values.shape[0], size):
        for j in range(0, values.shape[1], size):
            plgpu.wait_smem_to_gmem(1, wait_read_only=True)
            smem[slot] = values[i : i + size, j : j + size].astype(smem.dtype)
            plgpu.commit_smem()
            target = out.at[pl.ds(row + i, size), pl.ds(column + j, size)]
            plgpu.copy_smem_to_gmem(smem.at[slot], target)
            slot = 1 - slot


def kernel(name: str, body, out_type, **scratch):
    """A persistent kernel: one CTA a multiprocessor, two warpgroups multiply and one copies.

    Without other `scratch`, `smem` holds two blocks a warpgroup for `write`.
    """
    dtype, size = jax.tree.leaves(out_type)[0].dtype, EPILOGUE
    body.__name__ = f"moe_{name}"  # what profiles show
    if not scratch:
        blocks = plgpu.SMEM((2, 2, size, size), dtype, transforms=transforms(size, dtype))
        scratch = dict(smem=blocks)
    return plgpu.kernel(
        body,
        out_type=out_type,
        grid=(multiprocessors(),),
        grid_names=("sm",),
        num_threads=3,
        thread_name="wg",
        compiler_params=plgpu.CompilerParams(
            lowering_semantics=plgpu.LoweringSemantics.Warpgroup,
        ),
        scratch_types=scratch,
    )
