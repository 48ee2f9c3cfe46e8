"""Expert choice against what its docstring promises."""

import functools

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.moe.routers.gates import SEEDS, VALID, check_slots, random_gates
from vimoe_jax.moe.routers import expert_choice as router


@functools.cache
def expert_choice(capacity):
    """The assignment, and the gradient of <weights, target>."""

    def f(gates, valid, target):
        a = router.expert_choice(gates, capacity, valid=valid)
        return jnp.sum(a.weight * target), a

    return jax.jit(jax.grad(f, has_aux=True))


@pytest.mark.parametrize(("shape", "capacity"), [((2, 11, 4), 3), ((1, 6, 3), 6), ((2, 5, 4), 1)])
@hypothesis.given(seed=SEEDS, valid_fraction=VALID, ties=st.booleans())
@hypothesis.settings(deadline=None, max_examples=30)
def test_experts_take_the_tokens_with_the_largest_gates(
    shape, capacity, seed, valid_fraction, ties
):
    gates, valid = random_gates(seed, *shape, valid_fraction, ties)
    target = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    gradient, a = expert_choice(capacity)(gates, valid, target)
    a = jax.tree.map(np.asarray, a)
    gates, valid, taken = np.asarray(gates), np.asarray(valid), a.slot < capacity
    np.testing.assert_array_equal(a.expert, np.broadcast_to(np.arange(shape[2]), shape))
    check_slots(a.expert, a.slot, taken, shape[2], capacity)
    assert not taken[~valid].any()
    for g, e in np.ndindex(shape[0], shape[2]):
        mine = taken[g, :, e]
        assert mine.sum() == min(capacity, valid[g].sum())
        left = valid[g] & ~mine
        if mine.any() and left.any():
            assert gates[g, mine, e].min() >= gates[g, left, e].max()
    np.testing.assert_array_equal(a.weight, np.where(taken, gates, 0))
    np.testing.assert_array_equal(gradient, np.where(taken, target, 0))


def test_what_no_expert_chose_was_never_routed():
    gates, valid = random_gates(2, 2, 9, 4, 0.7)
    a = router.expert_choice(gates, 2, valid=valid)
    routed, kept = a.counts(valid)
    np.testing.assert_array_equal(routed, kept)
    assert float(kept.sum()) == 2 * 4 * 2


def test_expert_choice_refuses_no_capacity():
    with pytest.raises(ValueError, match="capacity must be"):
        router.expert_choice(jnp.ones((1, 2, 4)) / 4, 0)
