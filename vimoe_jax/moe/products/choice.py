"""Which implementation multiplies, on the default device."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from vimoe_jax.moe.products import proof
from vimoe_jax.moe.products.check import check
from vimoe_jax.moe.products.segments import Backend


def tile_rows(choices: int, num_experts: int, name: Backend) -> int:
    """Rows of a tile: what the kernels need, or on the portable path a share of an expert's rows.

    Args:
      choices: T·K, rows before padding.
      num_experts: E.
      name: what will run.
    """
    if name != "portable":
        return 128
    share = max(choices // num_experts // 8, 8)
    tile = min(1 << (share - 1).bit_length(), 128)
    # XLA on CPU gives a batch of products one thread each core only if each product is large: one
    # of 128 rows is not, at moe_small's widths.
    return 144 if tile == 128 and jax.default_backend() == "cpu" else tile


def backend(dtype: DTypeLike, *dims: int) -> Backend:
    """The implementation for products of matrices with these dimensions on the default device.

    Products that feed each other must run on the same one (ask with all their dimensions): kernels
    leave rows that nobody owns unwritten, which other kernels skip and the portable path reads.
    """
    return _backend(jnp.dtype(dtype)) if all(d % 128 == 0 for d in dims) else "portable"


@functools.cache
def _backend(dtype: np.dtype) -> Backend:
    from vimoe_jax.moe.products import hopper

    if dtype in (jnp.bfloat16, jnp.float16) and hopper.supported():
        return "hopper" if proof.passes_check("hopper", dtype, check) else "portable"
    if jax.default_backend() == "tpu":
        return "megablox" if proof.passes_check("megablox", dtype, check) else "portable"
    return "portable"
