"""Auxiliary losses: known values, padding, gradients at exact balance."""

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vimoe_jax.moe import losses
from vimoe_jax.moe.routers.top_k import top_k

G, M, E = 2, 12, 4


def uniform():
    return jnp.full((G, M, E), 1 / E)


def random_logits(seed=0):
    return jax.random.normal(jax.random.key(seed), (G, M, E))


def test_importance_is_the_papers_formula():
    gates = jax.nn.softmax(random_logits())
    total = np.asarray(gates).sum(1)
    expected = np.mean((total.std(-1) / total.mean(-1)) ** 2)
    np.testing.assert_allclose(losses.importance(gates), expected, rtol=1e-5)


def test_load_is_the_papers_formula():
    logits = random_logits()
    noise_std = 0.25
    noisy = logits + noise_std * random_logits(1)
    from scipy.stats import norm

    threshold = -np.sort(-np.asarray(noisy), -1)[..., 1:2]
    chance = (1 - norm.cdf((threshold - np.asarray(logits)) / noise_std)).mean(1)
    expected = np.mean((chance.std(-1) / chance.mean(-1)) ** 2)
    np.testing.assert_allclose(losses.load(logits, noisy, 2, noise_std), expected, rtol=1e-4)


@pytest.mark.parametrize("k", [1, 2, 3, 4])
def test_balance_is_one_at_perfect_balance_for_every_k(k):
    # Token m chooses experts m, m+1, … (mod E): every expert is chosen equally often.
    expert = (jnp.arange(M)[:, None] + jnp.arange(k)) % E
    expert = jnp.broadcast_to(expert, (G, M, k))
    np.testing.assert_allclose(losses.balance(uniform(), expert), 1.0, rtol=1e-6)


def test_balance_of_collapse_is_the_number_of_experts():
    gates = jax.nn.one_hot(jnp.zeros((G, M), int), E)
    np.testing.assert_allclose(losses.balance(gates, jnp.zeros((G, M, 1), int)), E, rtol=1e-6)


def test_z_is_the_mean_squared_logsumexp():
    logits = random_logits()
    expected = np.mean(np.log(np.exp(np.asarray(logits)).sum(-1)) ** 2)
    np.testing.assert_allclose(losses.z(logits), expected, rtol=1e-5)


@jax.jit
def all_losses(logits, valid):
    gates = jax.nn.softmax(logits)
    expert = top_k(gates, 2, logits.shape[1], valid=valid).expert
    noise = 0.1 * random_logits(5)[: logits.shape[0], : logits.shape[1]]
    return {
        "importance": losses.importance(gates, valid),
        "load": losses.load(logits, logits + noise, 2, 0.25, valid),
        "balance": losses.balance(gates, expert, valid),
        "z": losses.z(logits, valid),
    }


def close(a, b, rtol=1e-5):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol), a, b)


def test_padding_counts_in_nothing():
    logits = random_logits()
    valid = jnp.broadcast_to(jnp.arange(M) < 7, (G, M))
    garbage = jnp.where(valid[..., None], logits, 50.0 * random_logits(9))
    close(all_losses(garbage, valid), all_losses(logits[:, :7], None))


def test_an_empty_group_changes_no_mean():
    logits = random_logits()
    valid = jnp.stack([jnp.ones(M, bool), jnp.zeros(M, bool)])
    close(all_losses(logits, valid), all_losses(logits[:1], None))


def test_without_tokens_all_losses_are_zero():
    close(all_losses(random_logits(), jnp.zeros((G, M), bool)), dict.fromkeys(NAMES, 0.0))


@hypothesis.given(seed=st.integers(0, 10_000), valid_fraction=st.sampled_from([0.0, 0.5, 1.0]))
@hypothesis.settings(deadline=None, max_examples=20)
def test_padding_has_no_gradient(seed, valid_fraction):
    logits = random_logits(seed)
    valid = np.random.default_rng(seed).random((G, M)) < valid_fraction
    gradient = np.asarray(gradient_of_all(logits, valid))
    assert np.isfinite(gradient).all()
    np.testing.assert_array_equal(gradient[:, ~valid], 0)


NAMES = ("importance", "load", "balance", "z")


@jax.jit
def gradient_of_all(logits, valid):
    """Each loss's gradient, one after the other."""
    return jnp.stack([jax.grad(lambda x, n=n: all_losses(x, valid)[n])(logits) for n in NAMES])


@pytest.mark.parametrize("scale", [0.0, 1e4])
@pytest.mark.parametrize("valid", [True, False])
def test_gradients_are_finite_at_exact_balance_and_far_from_it(valid, scale):
    logits = scale * random_logits()
    assert np.isfinite(gradient_of_all(logits, jnp.full((G, M), valid))).all()


def test_exact_balance_is_the_least():
    zero = jnp.zeros((G, M, E))
    assert float(losses.importance(jax.nn.softmax(zero))) == 0
    assert float(losses.load(zero, zero, 2, 0.25)) == 0
    np.testing.assert_allclose(losses.z(zero), np.log(E) ** 2, rtol=1e-6)
    np.testing.assert_allclose(gradient_of_all(zero, jnp.ones((G, M), bool))[0], 0, atol=1e-6)


def test_load_lets_the_busy_expert_fall():
    """A step against the gradient takes logits from the expert that all tokens choose."""
    logits = random_logits() + jnp.array([0.5, 0, 0, 0])
    gradient = jax.jit(jax.grad(lambda x: losses.load(x, logits, 1, 0.5)))(logits)
    assert float(gradient[..., 0].sum()) > 0
