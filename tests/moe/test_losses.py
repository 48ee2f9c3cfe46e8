"""Auxiliary losses: known values, padding, gradients at exact balance."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vimoe_jax.moe import losses, routing

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


def all_losses(logits, valid):
    gates = jax.nn.softmax(logits)
    expert = routing.top_k(gates, 2, M, valid=valid).expert
    return {
        "importance": losses.importance(gates, valid),
        "load": losses.load(logits, logits + 0.1 * random_logits(5), 2, 0.25, valid),
        "balance": losses.balance(gates, expert, valid),
        "z": losses.z(logits, valid),
    }


def test_padding_counts_in_nothing():
    logits = random_logits()
    valid = jnp.arange(M) < 7
    valid = jnp.broadcast_to(valid, (G, M))
    garbage = jnp.where(valid[..., None], logits, 50.0 * random_logits(9))
    whole = all_losses(garbage, valid)
    noise = 0.1 * random_logits(5)
    short = logits[:, :7]
    gates = jax.nn.softmax(short)
    np.testing.assert_allclose(whole["importance"], losses.importance(gates), rtol=1e-5)
    np.testing.assert_allclose(
        whole["load"], losses.load(short, short + noise[:, :7], 2, 0.25), rtol=1e-4
    )
    np.testing.assert_allclose(whole["z"], losses.z(short), rtol=1e-5)


def test_an_empty_group_changes_no_mean():
    logits = random_logits()
    valid = jnp.stack([jnp.ones(M, bool), jnp.zeros(M, bool)])
    both = all_losses(logits, valid)
    one = losses.importance(jax.nn.softmax(logits[:1]))
    np.testing.assert_allclose(both["importance"], one, rtol=1e-5)


@pytest.mark.parametrize("valid", [None, jnp.zeros((G, M), bool)])
def test_gradients_are_finite_at_exact_balance_and_without_tokens(valid):
    def total(logits):
        return sum(all_losses(logits, valid).values())

    grad = jax.grad(total)(jnp.zeros((G, M, E)))
    assert np.isfinite(np.asarray(grad)).all()
