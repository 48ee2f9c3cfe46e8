"""The kernels of `products.hopper` in plain JAX: references, and stand-ins where no GPU is.

What the kernels leave unwritten is NaN here.
"""

import contextlib
import tempfile

import jax
import jax.numpy as jnp

from vimoe_jax.moe.products import choice, hopper, tiles


def _owned(out, expert, used):
    return jnp.repeat(jnp.arange(expert.shape[0]) < used[0], out.shape[0] // expert.shape[0])[
        :, None
    ]


def _product(lhs, rhs, expert):
    """float32: each row tile times its expert's matrix, tile by tile."""
    by_tile = lhs.astype(jnp.float32).reshape(expert.shape[0], -1, lhs.shape[1])
    matrices = rhs.astype(jnp.float32)[expert]
    out = jnp.einsum("trd,tdf->trf", by_tile, matrices, precision="highest")
    return out.reshape(-1, rhs.shape[2])


def rows(lhs, rhs, expert, used, *, transposed=False, one_each=False, cut=None):
    """`hopper.rows`."""
    out = _product(lhs, rhs.swapaxes(1, 2) if transposed else rhs, expert)
    out = jnp.where(_owned(out, expert, used), out, jnp.nan).astype(lhs.dtype)
    if not one_each:
        return out
    tiles = out.reshape(rhs.shape[0], -1, out.shape[1])
    home = jnp.where(jnp.arange(rhs.shape[0]) < used, expert, rhs.shape[0])
    return jnp.full_like(tiles, jnp.nan).at[home].set(tiles, mode="drop").reshape(out.shape)


def gated(lhs, rhs, expert, used, *, shared=False, cut=None):
    """`hopper.gated`."""
    height = lhs.shape[0]
    if shared:
        lhs = jnp.tile(lhs, (expert.shape[0], 1))
    gate, up = (_product(lhs, rhs[:, :, i], expert) for i in (0, 1))
    both = jnp.concatenate([gate, up], -1)
    both = jnp.full((height, both.shape[1]), jnp.nan) if shared else both
    owned = _owned(gate, expert, used)
    out = jnp.where(owned, jax.nn.silu(gate) * up, jnp.nan)
    both = both if shared else jnp.where(owned, both, jnp.nan)
    return both.astype(lhs.dtype), out.astype(lhs.dtype)


def gated_backward(d_out, rhs, both, expert, used, *, cut=None):
    """`hopper.gated_backward`."""
    d_hidden = _product(d_out, rhs.swapaxes(1, 2), expert)
    gate, up = jnp.split(both.astype(jnp.float32), 2, -1)
    _, vjp = jax.vjp(lambda gate, up: jax.nn.silu(gate) * up, gate, up)
    d_both = jnp.concatenate(vjp(d_hidden), -1)
    return jnp.where(_owned(d_both, expert, used), d_both, jnp.nan).astype(d_out.dtype)


def weights(lhs, rhs, sizes, *, cut=None):
    """`hopper.weights`."""
    place = jnp.arange(lhs.shape[0])[:, None]
    ends = jnp.cumsum(sizes)
    mine = (place < ends) & (place >= ends - sizes)
    owned = mine.any(-1, keepdims=True)
    lhs, rhs32 = (jnp.where(owned, a.astype(jnp.float32), 0) for a in (lhs, rhs))
    one_hot = mine.astype(jnp.float32)
    return jnp.einsum("re,rd,rf->edf", one_hot, lhs, rhs32, precision="highest").astype(rhs.dtype)


NAMES = ("rows", "gated", "gated_backward", "weights")


def clear():
    """Forgets which backends were tried and which tiles were picked."""
    choice._backend.cache_clear()
    tiles._pick.cache_clear()


@contextlib.contextmanager
def stand_in(monkeypatch, **changed):
    """Within, the device passes for a Hopper GPU whose kernels are these, but for `changed`."""
    with monkeypatch.context() as m, tempfile.TemporaryDirectory() as folder:
        m.setenv("VIMOE_CACHE", folder)  # what these kernels pass, no others have passed
        m.setattr(hopper, "supported", lambda: True)
        for name in NAMES:
            m.setattr(hopper, name, changed.get(name, globals()[name]))
        clear()
        yield
    clear()
