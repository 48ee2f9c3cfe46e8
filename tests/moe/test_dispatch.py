"""The dispatchers agree in value and in every gradient."""

import functools

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.test_util import check_grads

from vimoe_jax.moe import dispatch, routing
from vimoe_jax.moe.experts import Experts

D, F = 5, 7


def layer(name, x, gates, valid, k, capacity, weights):
    """Router's gates to output, with plain SwiGLU experts."""
    a = routing.top_k(gates, k, capacity, valid=valid)
    d = dispatch.create(name, a, gates.shape[-1], capacity)
    h = jnp.einsum("gecd,edif->igecf", d.to_experts(x), weights["w_in"])
    return d.from_experts(jnp.einsum("gecf,efo->geco", jax.nn.silu(h[0]) * h[1], weights["w_out"]))


def by_hand(x, gates, valid, k, capacity, weights):
    """Every kept choice on its own, in numpy."""
    a = routing.top_k(gates, k, capacity, valid=valid)
    y = np.zeros(x.shape)
    weights = {n: np.asarray(v, np.float64) for n, v in weights.items()}
    a = jax.tree.map(np.asarray, a)
    for g, m, j in np.ndindex(*a.slot.shape):
        if a.slot[g, m, j] < capacity:
            w = {n: v[a.expert[g, m, j]] for n, v in weights.items()}
            gate, up = (np.asarray(x[g, m], np.float64) @ w["w_in"][:, i] for i in (0, 1))
            y[g, m] += float(a.weight[g, m, j]) * (gate / (1 + np.exp(-gate)) * up) @ w["w_out"]
    return y


def inputs(seed, groups, tokens, experts, sharpness, valid_fraction):
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(groups, tokens, experts))
    logits[..., 0] += sharpness  # a large value sends everything to expert 0
    weights = {
        "w_in": jnp.asarray(rng.normal(size=(experts, D, 2, F)) / D**0.5, jnp.float32),
        "w_out": jnp.asarray(rng.normal(size=(experts, F, D)) / F**0.5, jnp.float32),
    }
    x = jnp.asarray(rng.normal(size=(groups, tokens, D)), jnp.float32)
    valid = jnp.asarray(rng.random((groups, tokens)) < valid_fraction)
    return x, jax.nn.softmax(jnp.asarray(logits, jnp.float32)), valid, weights


@functools.cache
def compiled(name, k, capacity):
    """Output and gradients of <output, target>, compiled once for each shape."""

    def loss(x, gates, weights, valid, target):
        y = layer(name, x, gates, valid, k, capacity, weights)
        return jnp.sum(y * target), y

    return jax.jit(jax.grad(loss, argnums=(0, 1, 2), has_aux=True))


@pytest.mark.parametrize(
    ("shape", "k", "capacity"),
    [
        ((2, 9, 4), 2, 3),
        ((3, 7, 5), 5, 7),  # K = E, room for all
        ((1, 8, 3), 1, 1),
        ((2, 6, 4), 3, 1),
    ],
    ids=str,
)
@hypothesis.given(
    seed=st.integers(0, 10_000),
    sharpness=st.sampled_from([0.0, 30.0]),
    valid_fraction=st.sampled_from([0.0, 0.7, 1.0]),
)
@hypothesis.settings(deadline=None, max_examples=20)
def test_dispatchers_agree(shape, k, capacity, seed, sharpness, valid_fraction):
    x, gates, valid, weights = inputs(seed, *shape, sharpness, valid_fraction)
    target = np.random.default_rng(seed).normal(size=x.shape).astype(np.float32)
    results = {
        name: compiled(name, k, capacity)(x, gates, weights, valid, target)
        for name in ("einsum", "gather")
    }
    np.testing.assert_allclose(
        results["einsum"][1], by_hand(x, gates, valid, k, capacity, weights), atol=1e-5
    )
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5, rtol=1e-5),
        results["einsum"],
        results["gather"],
    )


@pytest.mark.parametrize("name", ["einsum", "gather"])
def test_gradients_against_finite_differences(name):
    x, gates, valid, _ = inputs(1, 2, 6, 3, 0.0, 0.8)
    a = routing.top_k(gates, 2, 2, valid=valid)

    def f(x, weight, out_weight):
        d = dispatch.create(name, a.replace(weight=weight), 3, 2)
        return d.from_experts(jnp.tanh(d.to_experts(x)) * out_weight[None, :, None])

    check_grads(f, (x, a.weight, jnp.ones((3, D))), order=1, modes=["rev"], atol=1e-2, rtol=1e-2)


@pytest.mark.parametrize("activation", ["swiglu", "gelu_tanh", "gelu"])
def test_experts_equal_one_mlp_each(activation):
    experts = Experts(
        3, D, F, 4, activation=activation, bias=True, dtype=jnp.float32, rngs=nnx.Rngs(0)
    )
    experts.b_in[...] = jax.random.normal(jax.random.key(1), experts.b_in.shape)
    experts.b_out[...] = jax.random.normal(jax.random.key(2), experts.b_out.shape)
    x = jax.random.normal(jax.random.key(3), (2, 3, 6, D))
    y = experts(x)
    for e in range(3):
        h = [
            x[:, e] @ experts.w_in[e, :, i] + experts.b_in[e, i]
            for i in range(experts.w_in.shape[2])
        ]
        act = {
            "swiglu": lambda a, b: jax.nn.silu(a) * b,
            "gelu_tanh": lambda a: jax.nn.gelu(a, approximate=True),
            "gelu": lambda a: jax.nn.gelu(a, approximate=False),
        }[activation]
        expected = act(*h) @ experts.w_out[e] + experts.b_out[e]
        np.testing.assert_allclose(y[:, e], expected, atol=1e-5)
