"""The router's product is a float32 product, whatever it is made of."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vimoe_jax.moe import logits
from vimoe_jax.moe.logits import router_logits

D, E = 256, 24
MANY, FEW = 640, 16  # tokens: more than the bound from which weights are split, and fewer


def operands(tokens=MANY, spread=0.0, seed=0):
    """16-bit activations, a float32 router, a gradient of the logits; over orders of magnitude."""
    rng = np.random.default_rng(seed)

    def draw(*shape):
        values = rng.normal(size=shape) * np.exp(spread * rng.normal(size=shape))
        return jnp.asarray(np.float32(values))

    return jnp.asarray(draw(tokens, D), jnp.bfloat16), draw(D, E), draw(tokens, E)


def exact(a):
    return np.asarray(a, np.float64)


def error(got, a, b):
    """Largest error of `got = a @ b`, relative to the summands: sums may cancel to nothing."""
    a, b = exact(a), exact(b)
    return np.max(np.abs(exact(got) - a @ b) / (np.abs(a) @ np.abs(b)))


def check(got, a, b, tolerance):
    assert error(got, a, b) <= tolerance


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "jit"])
@pytest.mark.parametrize("tokens", [MANY, FEW])
@pytest.mark.parametrize("spread", [0.0, 3.0])
def test_logits_are_of_float32_accuracy(compiled, tokens, spread):
    x, w, _ = operands(tokens, spread)
    y = (jax.jit(router_logits) if compiled else router_logits)(x, w)
    assert y.dtype == jnp.float32
    # Processors differ in what they lose as they sum products of bfloat16 in float32 (1.4e-6 was
    # seen on one with AVX-512's). So it is measured by what this one's float32 product loses.
    plain = jnp.matmul(x.astype(jnp.float32), w, precision="highest")
    check(y, x, w, max(1e-6, 3 * error(plain, x, w)))
    norm = np.linalg.norm(exact(x) @ exact(w))
    assert np.linalg.norm(exact(y) - exact(x) @ exact(w)) <= 1e-5 * norm


@pytest.mark.parametrize("tokens", [MANY, FEW])
def test_gradients(tokens):
    x, w, d_y = operands(tokens, spread=1.0)

    @jax.jit
    def f(x, w, d_y):
        return jax.vjp(router_logits, x, w)[1](d_y)

    d_x, d_w = f(x, w, d_y)
    assert (d_x.dtype, d_w.dtype) == (jnp.bfloat16, jnp.float32)
    check(d_w, exact(x).T, d_y, 1e-6)
    norm = np.linalg.norm(exact(x).T @ exact(d_y))
    assert np.linalg.norm(exact(d_w) - exact(x).T @ exact(d_y)) <= 1e-5 * norm
    # Both operands and the result are rounded to 8 bits: each by at most 2⁻⁸ of itself.
    check(d_x, d_y, w.T, (1 + 2**-8) ** 3 - 1)


def test_many_tokens_are_split(monkeypatch):
    x, w, _ = operands()
    split = jnp.zeros((MANY, E))
    monkeypatch.setattr(logits, "_split_logits", lambda x, w: split)
    assert router_logits(x, w) is split
    assert router_logits(x[None, :FEW], w).shape == (1, FEW, E)
    assert router_logits(x.astype(jnp.float32), w).shape == (MANY, E)


def test_the_three_parts_are_the_whole():
    a = operands(spread=3.0)[1]
    for split in (logits._split, jax.jit(logits._split)):
        parts = split(a)
        assert parts.dtype == jnp.bfloat16 and parts.shape == (D, 3 * E)
        np.testing.assert_array_equal(exact(parts).reshape(D, 3, E).sum(1), exact(a))


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_other_dtypes_and_axes(dtype):
    x, w, _ = operands(FEW)
    x = x.astype(dtype).reshape(2, 8, D)
    y = jax.jit(router_logits)(x, w)
    assert y.shape == (2, 8, E) and y.dtype == jnp.float32
    check(y.reshape(-1, E), x.reshape(-1, D), w, 1e-6)


def test_leading_axes_are_kept_where_weights_are_split():
    x, w, d_y = operands()
    many = x.reshape(4, 160, D)
    y, vjp = jax.vjp(router_logits, many, w)
    check(y.reshape(-1, E), x, w, 1e-6)
    d_x, d_w = vjp(jnp.asarray(d_y).reshape(4, 160, E))
    assert d_x.shape == many.shape
    check(d_w, exact(x).T, d_y, 1e-6)
