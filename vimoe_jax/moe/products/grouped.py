"""Grouped matrix products: rows sorted by expert, each times its own expert's matrix.

`matmul` is the differentiable product, `swiglu` a whole expert MLP in fewer passes over memory
where the platform has kernels for it. Which implementation runs is chosen per platform, once, and
only after it has passed a gradient check there (`choice`, `proof`, `check`):

* `hopper`: this package's Mosaic GPU kernels (`vimoe_jax.moe.products.hopper`), 16-bit floats only;
* `megablox`: JAX's Pallas kernels for TPU;
* `portable`: batches of row tiles through XLA (`vimoe_jax.moe.products.portable`).

All of them read the same layout, `Segments`: each expert's rows are padded to whole row tiles, so
that no tile holds rows of two experts.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vimoe_jax.moe.products import portable
from vimoe_jax.moe.products.segments import Backend, Segments

# --- the product -------------------------------------------------------------------------------


def matmul(
    x: Float[Array, "R D"],
    w: Float[Array, "E D F"],
    segments: Segments,
    name: Backend,
) -> Float[Array, "R F"]:
    """`out[r] = x[r] @ w[expert of r]`, differentiable in `x` and `w`.

    Padding rows of `x` must be finite, and zero here or in the output's gradient. An expert without
    rows gets a gradient of zeros. `name` is `choice.backend`'s answer, one for all products
    that feed each other.
    """
    return _matmul(x, w, segments, name)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _matmul(x, w, segments, name):
    return _rows(x, w, segments, name)


def _matmul_fwd(x, w, segments, name):
    return _rows(x, w, segments, name), (x, w, segments)


def _matmul_bwd(name, saved, d_out):
    x, w, segments = saved
    d_x = _rows(d_out, w, segments, name, transposed=True)
    return d_x, _weights(x, d_out, segments, name).astype(w.dtype), None


_matmul.defvjp(_matmul_fwd, _matmul_bwd)


def swiglu(
    x: Float[Array, "R D"],
    w_in: Float[Array, "E D 2 F"],
    w_out: Float[Array, "E F O"],
    segments: Segments,
    name: Backend,
) -> Float[Array, "R O"]:
    """`(silu(x @ gate) * (x @ up)) @ w_out` with each row's expert's matrices.

    On Hopper the gated activation and its backward pass happen inside the products, which saves
    about a quarter of the layer's memory traffic.
    """
    if name == "hopper":
        return fused_swiglu(x, w_in, w_out, segments)
    num_experts, inner, _, width = w_in.shape
    h = matmul(x, w_in.reshape(num_experts, inner, 2 * width), segments, name)
    gate, up = jnp.split(h, 2, axis=1)  # its gradient is a concatenation, where slices would pad
    return matmul(jax.nn.silu(gate) * up, w_out, segments, name)


@jax.custom_vjp
def fused_swiglu(
    x: Float[Array, "R D"],
    w_in: Float[Array, "E D 2 F"],
    w_out: Float[Array, "E F O"],
    segments: Segments,
) -> Float[Array, "R O"]:
    """`swiglu` by the Hopper kernels, whether or not they are trusted."""
    return _fused_swiglu_fwd(x, w_in, w_out, segments)[0]


def _fused_swiglu_fwd(x, w_in, w_out, segments):
    from vimoe_jax.moe.products import hopper, tiles

    at = (segments.expert, segments.used)
    cut = tiles.pick("gated", x, w_in)
    both, h = hopper.gated(x, w_in, *at, cut=cut)
    return _rows(h, w_out, segments, "hopper"), (x, w_in, w_out, segments, both, h)


def _fused_swiglu_bwd(saved, d_out):
    from vimoe_jax.moe.products import hopper, tiles

    x, w_in, w_out, segments, both, h = saved
    at = (segments.expert, segments.used)
    cut = tiles.pick("gated_backward", d_out, w_out)
    d_both = hopper.gated_backward(d_out, w_out, both, *at, cut=cut)
    num_experts, inner, _, width = w_in.shape
    flat = w_in.reshape(num_experts, inner, 2 * width)
    d_x = _rows(d_both, flat, segments, "hopper", transposed=True)
    d_w_in = _weights(x, d_both, segments, "hopper").reshape(w_in.shape)
    return d_x, d_w_in, _weights(h, d_out, segments, "hopper"), None


fused_swiglu.defvjp(_fused_swiglu_fwd, _fused_swiglu_bwd)


def few_rows(
    x: Float[Array, "T D"],
    w_in: Float[Array, "E D 2 F"],
    w_out: Float[Array, "E F O"],
    weight: Float[Array, "T E"],
    name: Backend,
) -> Float[Array, "T O"] | None:
    """`Σ_e weight[t, e] · swiglu_e(x[t])` for few tokens, or None where there is no kernel for it.

    While decoding, time goes into reading weights: a row tile takes as long with one row as with
    all. So every expert that anyone chose gets all the tokens; none is sorted, moved or counted.
    Not differentiable.
    """
    num_experts = w_in.shape[0]
    if x.shape[0] > 128 or name != "hopper":
        return None
    from vimoe_jax.moe.products import hopper, tiles

    met = (weight != 0).any(0)
    place = jnp.arange(num_experts, dtype=jnp.int32)
    # The experts that were chosen, in order; behind them numbers that stand for none.
    expert = jax.lax.sort(jnp.where(met, place, num_experts + place))
    used = met.sum(dtype=jnp.int32)[None]
    height = 64 if x.shape[0] <= 64 else hopper.ROWS
    rows = jnp.pad(x, ((0, height - x.shape[0]), (0, 0)))
    cut = tiles.candidates("gated", rows.shape, w_in.shape)[0]
    if height == 64 and cut.columns < 256:  # each warpgroup needs 64 columns of both products
        return None
    cut = dataclasses.replace(cut, rows=height)
    _, h = hopper.gated(rows, w_in, expert, used, shared=True, cut=cut)
    cut = dataclasses.replace(tiles.candidates("rows", h.shape, w_out.shape)[0], rows=height)
    out = hopper.rows(h, w_out, expert, used, one_each=True, cut=cut)
    out = out.reshape(num_experts, height, -1)[:, : x.shape[0]].astype(jnp.float32)
    # Rows of experts that nobody chose are unwritten: left out, not multiplied by zero.
    y = jnp.sum(jnp.where(met[:, None, None], out, 0) * weight.T[..., None], 0)
    return y.astype(x.dtype)


# --- the two products it is made of ------------------------------------------------------------


def _rows(x, w, segments: Segments, name: Backend, *, transposed: bool = False):
    """`out[r] = x[r] @ w[expert of r]`, or its transpose."""
    if name == "hopper":
        from vimoe_jax.moe.products import hopper, tiles

        cut = tiles.pick("rows_transposed" if transposed else "rows", x, w)
        at = (segments.expert, segments.used)
        return hopper.rows(x, w, *at, transposed=transposed, cut=cut)
    if name == "megablox":
        from jax.experimental.pallas.ops.tpu.megablox.gmm import gmm

        return gmm(x, w, segments.sizes, x.dtype, _megablox_tiling(w), transpose_rhs=transposed)
    return portable.rows(x, w, segments, transposed=transposed)


def _weights(x, d_out, segments: Segments, name: Backend):
    """`out[e] = x[rows of e]ᵀ @ d_out[rows of e]`."""
    if name == "hopper":
        from vimoe_jax.moe.products import hopper, tiles

        cut = tiles.pick("weights", x, d_out, num_experts=segments.sizes.shape[0])
        return hopper.weights(x, d_out, segments.sizes, cut=cut)
    if name == "megablox":
        from jax.experimental.pallas.ops.tpu.megablox.gmm import tgmm

        # The kernel leaves blocks of experts without rows unwritten.
        out = tgmm(x.T, d_out, segments.sizes, x.dtype, (128, 128, 128))
        return jnp.where((segments.sizes > 0)[:, None, None], out, 0)
    return portable.weights(x, d_out, segments)


def _megablox_tiling(w) -> tuple[int, int, int]:
    return 128, min(512, w.shape[1]), min(512, w.shape[2])
