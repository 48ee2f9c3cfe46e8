"""The check that kernels must pass on the device that will run them."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from vimoe_jax.moe.products import grouped
from vimoe_jax.moe.products.segments import Backend, Segments


def check(name: Backend, dtype: DTypeLike) -> str | None:
    """What is wrong with a backend on this device, or None: values and every gradient."""
    counts = np.array([0, 1, 700, 0, 128, 129, 0], np.int32)
    num_experts, width, hidden = len(counts), 256, 384
    rows = (int(np.ceil(counts / 128).sum()) + 3) * 128
    segments = Segments.create(jnp.asarray(counts), rows, 128)
    owned = np.zeros((rows, 1), bool)
    for start, count in zip(np.asarray(segments.starts), counts, strict=True):
        owned[start : start + count] = True
    rng = np.random.default_rng(0)

    def draw(*shape: int) -> jax.Array:
        return jnp.asarray(rng.standard_normal(shape) / 4, dtype)

    x, d_out = draw(rows, width) * owned, draw(rows, width) * owned
    w_in, w_out = draw(num_experts, width, 2, hidden), draw(num_experts, hidden, width)
    flat = w_in.reshape(num_experts, width, -1)

    @functools.partial(jax.jit, static_argnums=(0, 1))
    def both_ways(name: Backend, fused: bool, x, w_in, w_out, d_out):
        def f(x, w_in, w_out):
            if fused:
                return grouped.fused_swiglu(x, w_in, w_out, segments)
            h = grouped.matmul(x, w_in.reshape(flat.shape), segments, name)
            return grouped.matmul(jax.nn.silu(h[:, :hidden]) * h[:, hidden:], w_out, segments, name)

        y, vjp = jax.vjp(f, x, w_in, w_out)
        d_x, *d_w = vjp(d_out.astype(y.dtype))
        return [jnp.where(owned, y, 0), jnp.where(owned, d_x, 0), *d_w]

    def mlp(name: Backend, fused: bool) -> list[np.ndarray]:
        found = both_ways(name, fused, x, w_in, w_out, d_out)
        return [np.asarray(a, np.float32) for a in found]

    truth = mlp("portable", False)
    for fused in (False, True) if name == "hopper" else (False,):
        for what, got, want in zip(
            ("y", "dx", "dw_in", "dw_out"), mlp(name, fused), truth, strict=True
        ):
            error = np.linalg.norm(got - want) / np.linalg.norm(want)
            if not error < 0.02:
                return f"{what} off by {error:.3g}{' (fused)' if fused else ''}"
            if what.startswith("dw") and np.any(got[counts == 0]):
                return f"{what} of an expert without rows is not zero"
    return None
