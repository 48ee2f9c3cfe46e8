"""The soft router's mixtures."""

import functools

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np

from tests.moe.routers.gates import SEEDS, VALID
from vimoe_jax.moe.routers.soft import mix


@functools.cache
def soft():
    def f(logits, valid, target):
        mixing = mix(logits, valid)
        dispatch, combine = mixing.dispatch, mixing.combine
        return jnp.sum(jnp.sin(dispatch) * target + jnp.cos(combine) * target), (dispatch, combine)

    return jax.jit(jax.grad(f, has_aux=True))


@hypothesis.given(seed=SEEDS, valid_fraction=VALID, scale=st.sampled_from([0.0, 1.0, 100.0]))
@hypothesis.settings(deadline=None, max_examples=30)
def test_soft_mixtures_are_of_valid_tokens_and_of_all_slots(seed, valid_fraction, scale):
    rng = np.random.default_rng(seed)
    shape = (2, 6, 3, 2)
    logits, target = rng.normal(size=(2, *shape)).astype(np.float32)
    valid = rng.random(shape[:2]) < valid_fraction
    logits = np.float32(scale) * logits
    gradient, (dispatch, combine) = soft()(logits, valid, target)
    some = np.broadcast_to(valid.any(1)[:, None, None], (2, 3, 2))
    np.testing.assert_allclose(dispatch.sum(1), some, atol=1e-5)
    np.testing.assert_allclose(combine.sum((2, 3)), valid, atol=1e-5)
    np.testing.assert_array_equal(np.asarray(dispatch)[~valid], 0)
    np.testing.assert_array_equal(np.asarray(combine)[~valid], 0)
    assert np.isfinite(gradient).all()
    np.testing.assert_array_equal(np.asarray(gradient)[~valid], 0)
    # What padding holds makes no difference.
    other = np.where(valid[..., None, None], logits, 5)
    for a, b in zip(soft()(other, valid, target)[1], (dispatch, combine), strict=True):
        np.testing.assert_array_equal(a, b)


def test_soft_without_a_mask_takes_every_token():
    logits = jax.random.normal(jax.random.key(0), (1, 5, 2, 2))
    without, with_all = mix(logits), mix(logits, jnp.ones((1, 5), bool))
    np.testing.assert_allclose(without.dispatch, with_all.dispatch, rtol=1e-6)
    np.testing.assert_allclose(without.combine, with_all.combine, rtol=1e-6)
