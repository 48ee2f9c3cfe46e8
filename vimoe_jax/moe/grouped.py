"""Grouped matrix products: rows sorted by expert, each times its own expert's matrix.

`matmul` is the differentiable product, `swiglu` a whole expert MLP in fewer passes over memory
where the platform has kernels for it. Which implementation runs is chosen per platform, once, and
only after it has passed a gradient check there (`backend`):

* `hopper`: this package's Mosaic GPU kernels (`vimoe_jax.moe.hopper`), 16-bit floats only;
* `megablox`: JAX's Pallas kernels for TPU;
* `portable`: batches of row tiles, right everywhere.

All of them read the same layout, `Segments`: each expert's rows are padded to whole row tiles, so
that no tile holds rows of two experts.
"""

from __future__ import annotations

import dataclasses
import functools
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Bool, Float, Int

Backend = Literal["hopper", "megablox", "portable"]
T = TypeVar("T")


@struct.dataclass
class Segments:
    """Which rows belong to which expert.

    Expert e owns `sizes[e]` consecutive rows, after those of the experts before it. Rows behind the
    last expert's belong to nobody. What is computed for them is unspecified (kernels skip them and
    leave memory unwritten). What is fed in for them must be finite, and zero in the rows or in the
    gradients; then nothing else depends on it. `owned` masks them where they would go elsewhere.

    Attributes:
      starts: first row of each expert.
      sizes: rows of each expert, padding included: multiples of `tile`.
      expert: owner of each row tile; 0 for tiles behind the last.
      used: number of row tiles that have an owner.
      tile: rows of a tile.
    """

    starts: Int[Array, "E"]
    sizes: Int[Array, "E"]
    expert: Int[Array, "tiles"]
    used: Int[Array, "1"]
    tile: int = struct.field(pytree_node=False)

    @classmethod
    def create(cls, counts: Int[Array, "E"], num_rows: int, tile: int) -> Segments:
        """Rounds counts up to whole tiles; `num_rows` is static and must have room for all."""
        sizes = -(-counts // tile) * tile
        ends = jnp.cumsum(sizes)
        place = jnp.arange(num_rows // tile, dtype=jnp.int32) * tile
        expert = jnp.sum(place[:, None] >= ends, -1, dtype=jnp.int32)
        expert = jnp.where(expert < counts.shape[0], expert, 0)
        return cls(ends - sizes, sizes, expert, ends[-1:] // tile, tile)

    def owned(self) -> Bool[Array, "R"]:
        """Which rows belong to an expert (its padding included)."""
        return jnp.arange(self.expert.shape[0] * self.tile) < self.used[0] * self.tile


def tile_rows(choices: int, num_experts: int, dtype: jnp.dtype) -> int:
    """Rows of a tile: what the kernels need, or on the portable path a share of an expert's rows.

    Args:
      choices: T·K, rows before padding.
      num_experts: E.
      dtype: of the rows.
    """
    if backend(dtype) != "portable":
        return 128
    share = max(choices // num_experts // 8, 8)
    return min(1 << (share - 1).bit_length(), 128)


def num_rows(choices: int, num_experts: int, tile: int) -> int:
    """Rows that always suffice: an expert wastes less than a tile, one without rows nothing."""
    return (choices // tile + min(num_experts, choices)) * tile


@functools.cache
def backend(dtype: jnp.dtype) -> Backend:
    """The implementation for rows of this dtype on the default device."""
    from vimoe_jax.moe import hopper

    if jnp.dtype(dtype) in (jnp.bfloat16, jnp.float16) and hopper.supported():
        return "hopper" if _proven("hopper", jnp.dtype(dtype)) else "portable"
    if jax.default_backend() == "tpu":
        return "megablox" if _proven("megablox", jnp.dtype(dtype)) else "portable"
    return "portable"


def _fits(name: Backend, *dims: int) -> Backend:
    """`name` if its kernels can take matrices of these dimensions, else the portable path."""
    return name if name == "portable" or all(d % 128 == 0 for d in dims) else "portable"


# --- the product -------------------------------------------------------------------------------


def matmul(
    x: Float[Array, "R D"], w: Float[Array, "E D F"], segments: Segments
) -> Float[Array, "R F"]:
    """`out[r] = x[r] @ w[expert of r]`, differentiable in `x` and `w`.

    Padding rows of `x` must be finite, and zero here or in the output's gradient. An expert without
    rows gets a gradient of zeros.
    """
    return _matmul(x, w, segments, _fits(backend(x.dtype), *w.shape[1:]))


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
) -> Float[Array, "R O"]:
    """`(silu(x @ gate) * (x @ up)) @ w_out` with each row's expert's matrices.

    On Hopper the gated activation and its backward pass happen inside the products, which saves
    about a quarter of the layer's memory traffic.
    """
    dims = (w_in.shape[1], w_in.shape[3], w_out.shape[2])
    if _fits(backend(x.dtype), *dims) == "hopper":
        return _fused_swiglu(x, w_in, w_out, segments)
    num_experts, inner, _, width = w_in.shape
    h = matmul(x, w_in.reshape(num_experts, inner, 2 * width), segments)
    gate, up = jnp.split(h, 2, axis=1)  # its gradient is a concatenation, where slices would pad
    return matmul(jax.nn.silu(gate) * up, w_out, segments)


@jax.custom_vjp
def _fused_swiglu(x, w_in, w_out, segments):
    return _fused_swiglu_fwd(x, w_in, w_out, segments)[0]


def _fused_swiglu_fwd(x, w_in, w_out, segments):
    from vimoe_jax.moe import hopper, tiles

    at = (segments.expert, segments.used)
    cut = tiles.pick("gated", x, w_in)
    both, h = hopper.gated(x, w_in, *at, cut=cut)
    return _rows(h, w_out, segments, "hopper"), (x, w_in, w_out, segments, both, h)


def _fused_swiglu_bwd(saved, d_out):
    from vimoe_jax.moe import hopper, tiles

    x, w_in, w_out, segments, both, h = saved
    at = (segments.expert, segments.used)
    cut = tiles.pick("gated_backward", d_out, w_out)
    d_both = hopper.gated_backward(d_out, w_out, both, *at, cut=cut)
    num_experts, inner, _, width = w_in.shape
    flat = w_in.reshape(num_experts, inner, 2 * width)
    d_x = _rows(d_both, flat, segments, "hopper", transposed=True)
    d_w_in = _weights(x, d_both, segments, "hopper").reshape(w_in.shape)
    return d_x, d_w_in, _weights(h, d_out, segments, "hopper"), None


_fused_swiglu.defvjp(_fused_swiglu_fwd, _fused_swiglu_bwd)


def few_rows(
    x: Float[Array, "T D"],
    w_in: Float[Array, "E D 2 F"],
    w_out: Float[Array, "E F O"],
    weight: Float[Array, "T E"],
) -> Float[Array, "T O"] | None:
    """`Σ_e weight[t, e] · swiglu_e(x[t])` for few tokens, or None where there is no kernel for it.

    While decoding, time goes into reading weights: a row tile takes as long with one row as with
    all. So every expert that anyone chose gets all the tokens; none is sorted, moved or counted.
    Not differentiable.
    """
    num_experts, inner, _, hidden = w_in.shape
    if x.shape[0] > 128 or _fits(backend(x.dtype), inner, hidden, w_out.shape[2]) != "hopper":
        return None
    from vimoe_jax.moe import hopper, tiles

    met = (weight != 0).any(0)
    # The experts that were chosen first; a sum over E² comparisons, which needs no second pass.
    before = jnp.sum(met[:, None] & jnp.triu(jnp.ones((num_experts,) * 2, bool), 1), 0)
    place = jnp.arange(num_experts)
    here = met & (before == place[:, None])  # (tile, expert)
    expert = jnp.sum(here * place, -1, dtype=jnp.int32)
    used = met.sum(dtype=jnp.int32)[None]
    height = 64 if x.shape[0] <= 64 else hopper.ROWS
    rows = jnp.pad(x, ((0, height - x.shape[0]), (0, 0)))
    cut = tiles.candidates("gated", rows.shape, w_in.shape)[0]
    if height == 64 and cut.columns < 256:  # each warpgroup needs 64 columns of both products
        return None
    cut = dataclasses.replace(cut, rows=height)
    _, h = hopper.gated(rows, w_in, expert, used, shared=True, cut=cut)
    cut = dataclasses.replace(tiles.candidates("rows", h.shape, w_out.shape)[0], rows=height)
    out = hopper.rows(h, w_out, expert, used, cut=cut)
    out = out.reshape(num_experts, height, -1)[:, : x.shape[0]]
    share = jnp.sum(weight[:, None] * here, -1).T[..., None]  # (tile, T, 1)
    # Tiles behind the last are unwritten: they are left out, not multiplied by zero.
    y = jnp.sum(jnp.where((place < used)[:, None, None], out, 0).astype(jnp.float32) * share, 0)
    return y.astype(x.dtype)


# --- the two products it is made of ------------------------------------------------------------


def _rows(x, w, segments: Segments, name: Backend, *, transposed: bool = False):
    """`out[r] = x[r] @ w[expert of r]`, or its transpose."""
    if name == "hopper":
        from vimoe_jax.moe import hopper, tiles

        cut = tiles.pick("rows_transposed" if transposed else "rows", x, w)
        at = (segments.expert, segments.used)
        return hopper.rows(x, w, *at, transposed=transposed, cut=cut)
    if name == "megablox":
        from jax.experimental.pallas.ops.tpu.megablox.gmm import gmm

        return gmm(x, w, segments.sizes, x.dtype, _megablox_tiling(w), transpose_rhs=transposed)
    return _portable_rows(x, w, segments, transposed)


def _weights(x, d_out, segments: Segments, name: Backend):
    """`out[e] = x[rows of e]ᵀ @ d_out[rows of e]`."""
    if name == "hopper":
        from vimoe_jax.moe import hopper, tiles

        cut = tiles.pick("weights", x, d_out, num_experts=segments.sizes.shape[0])
        return hopper.weights(x, d_out, segments.sizes, cut=cut)
    if name == "megablox":
        from jax.experimental.pallas.ops.tpu.megablox.gmm import tgmm

        # The kernel leaves blocks of experts without rows unwritten.
        out = tgmm(x.T, d_out, segments.sizes, x.dtype, (128, 128, 128))
        return jnp.where((segments.sizes > 0)[:, None, None], out, 0)
    return _portable_weights(x, d_out, segments)


def _megablox_tiling(w) -> tuple[int, int, int]:
    return 128, min(512, w.shape[1]), min(512, w.shape[2])


# Bytes that the matrices of the tiles multiplied at once may take, each tile having its own copy.
_AT_ONCE = 1 << 26


def _portable_rows(x, w, segments: Segments, transposed: bool):
    """Tiles as a batch, each with a copy of its expert's matrix."""
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


def _portable_weights(x, d_out, segments: Segments):
    """Every tile's product, then the sum over each expert's tiles, in float32."""
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


# --- whom to trust -----------------------------------------------------------------------------


def _proven(name: Backend, dtype: jnp.dtype) -> bool:
    """Runs a kernel's values and gradients against the portable path, on this device.

    Kernels have been published with wrong gradients for experts without rows: the check has some,
    one expert with most of the rows, one with a single row, and tiles that nobody owns.
    """
    try:
        complaint = outside_traces(check, name, dtype)
    except Exception as e:  # a compiler of another version may refuse in any way
        complaint = f"{type(e).__name__}: {str(e).splitlines()[0] if str(e) else ''}"
    if complaint:
        warnings.warn(
            f"grouped matmul: the {name} kernels fail their check on "
            f"{jax.devices()[0].device_kind} ({complaint}); taking the portable path",
            stacklevel=2,
        )
    return not complaint


def outside_traces(f: Callable[..., T], *args: Any) -> T:
    """Calls `f` where nothing is being traced: traces belong to threads, so in a thread of its own.

    Kernels cannot be built under `jax.ensure_compile_time_eval`: it hides their axis names.
    """
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(f, *args).result()


def check(name: Backend, dtype: jnp.dtype) -> str | None:
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

    def mlp(name: Backend, fused: bool):
        def f(x, w_in, w_out):
            if fused:
                return _fused_swiglu(x, w_in, w_out, segments)
            h = _matmul(x, w_in.reshape(flat.shape), segments, name)
            return _matmul(jax.nn.silu(h[:, :hidden]) * h[:, hidden:], w_out, segments, name)

        y, vjp = jax.vjp(f, x, w_in, w_out)
        d_x, *d_w = vjp(d_out.astype(y.dtype))
        return [np.asarray(jnp.where(owned, a, 0), np.float32) for a in (y, d_x)] + [
            np.asarray(a, np.float32) for a in d_w
        ]

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
