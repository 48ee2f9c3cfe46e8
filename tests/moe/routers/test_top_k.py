"""Top-k against an oracle in plain Python and against what its docstring promises."""

import functools

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.moe.routers.gates import SEEDS, VALID, check_slots, random_gates
from vimoe_jax.moe.routers import top_k as top_k_router

SHAPES = [  # G, M, E, K, C
    (2, 11, 4, 2, 3),
    (1, 11, 4, 4, 11),  # K = E, room for all
    (2, 5, 3, 1, 1),
    (1, 1, 1, 1, 1),
    (2, 9, 12, 10, 4),  # K > 8: by sorting
]
LONG = [  # queues of K·M choices about the limit up to which each is compared with each
    (1, 256, 4, 2, 70),  # 512
    (1, 171, 5, 3, 40),  # 513, no multiple of 128
    (2, 320, 3, 2, 100),  # 640, a multiple of 128
]


def oracle(gates, k, capacity, batch_priority, valid, bias):
    """Fills queues one choice at a time, in the order the papers give."""
    groups, tokens, experts = gates.shape
    slots = np.full((groups, tokens, k), capacity)
    chosen = np.argsort(-(gates + bias), axis=-1, kind="stable")[..., :k]
    for g in range(groups):
        order = range(tokens)
        if batch_priority:
            best = np.take_along_axis(gates[g], chosen[g], -1).max(-1)
            order = np.argsort(-best, kind="stable")
        used = [0] * experts
        for choice in range(k):
            for token in order:
                if valid[g, token]:
                    expert = chosen[g, token, choice]
                    slots[g, token, choice] = used[expert]
                    used[expert] += 1
    weight = np.take_along_axis(gates, chosen, -1) * valid[..., None]
    return chosen, slots, weight


@functools.cache
def top_k(k, capacity, batch_priority):
    """Compiled once for each shape."""

    def f(gates, valid, bias):
        return top_k_router.top_k(
            gates, k, capacity, batch_priority=batch_priority, valid=valid, bias=bias
        )

    return jax.jit(f)


def check_top_k(shape, seed, batch_priority, valid_fraction, ties, bias_scale):
    groups, tokens, experts, k, capacity = shape
    gates, valid = random_gates(seed, groups, tokens, experts, valid_fraction, ties)
    bias = np.float32(bias_scale * np.random.default_rng(seed).integers(-2, 3, experts))
    a = jax.tree.map(np.asarray, top_k(k, capacity, batch_priority)(gates, valid, bias))
    gates, valid = np.asarray(gates), np.asarray(valid)
    expert, slot, weight = oracle(gates, k, capacity, batch_priority, valid, bias)
    np.testing.assert_array_equal(a.expert, expert)
    np.testing.assert_array_equal(np.minimum(a.slot, capacity), np.minimum(slot, capacity))
    np.testing.assert_allclose(a.weight, weight, rtol=1e-6)
    wanted = np.broadcast_to(valid[..., None], expert.shape)
    check_slots(a.expert, a.slot, wanted, experts, capacity)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@hypothesis.given(
    seed=SEEDS,
    batch_priority=st.booleans(),
    valid_fraction=VALID,
    ties=st.booleans(),
    bias_scale=st.sampled_from([0.0, 0.25]),
)
@hypothesis.settings(deadline=None, max_examples=30)
def test_top_k_fills_slots_as_the_oracle_does(
    shape, seed, batch_priority, valid_fraction, ties, bias_scale
):
    check_top_k(shape, seed, batch_priority, valid_fraction, ties, bias_scale)


@pytest.mark.parametrize("batch_priority", [False, True])
@pytest.mark.parametrize("shape", LONG, ids=str)
@hypothesis.given(seed=SEEDS, valid_fraction=VALID)
@hypothesis.settings(deadline=None, max_examples=8)
def test_long_queues_are_filled_in_the_same_order(shape, batch_priority, seed, valid_fraction):
    check_top_k(shape, seed, batch_priority, valid_fraction, ties=False, bias_scale=0.0)


def test_of_equal_gates_the_lower_expert_comes_first():
    for k in (1, 3, 9, 10):
        a = top_k_router.top_k(jnp.full((1, 3, 10), 0.1), k, 3)
        np.testing.assert_array_equal(a.expert, np.broadcast_to(np.arange(k), (1, 3, k)))


def test_weights_are_the_gates_and_zero_for_padding():
    gates, _ = random_gates(0, 2, 6, 4)
    valid = jnp.asarray([[True] * 4 + [False] * 2, [False] * 6])
    a = top_k_router.top_k(gates, 2, 3, valid=valid)
    expected = -np.sort(-np.asarray(gates), axis=-1)[..., :2] * np.asarray(valid)[..., None]
    np.testing.assert_allclose(a.weight, expected, rtol=1e-6)
    assert (np.asarray(a.slot)[~np.asarray(valid)] >= 3).all()


def test_the_bias_is_for_choosing_and_not_for_combining():
    gates, _ = random_gates(1, 1, 7, 4)
    a = top_k_router.top_k(gates, 1, 7, bias=jnp.asarray([0.0, 0.0, 0.0, 2.0]))
    np.testing.assert_array_equal(a.expert, 3)
    np.testing.assert_array_equal(a.weight[..., 0], gates[..., 3])

    def total(gates, bias):
        return top_k_router.top_k(gates, 2, 7, bias=bias).weight.sum()

    d_gates, d_bias = jax.grad(total, (0, 1))(gates, jnp.asarray([0.3, 0.0, 0.0, 2.0]))
    np.testing.assert_array_equal(d_bias, 0)
    np.testing.assert_array_equal(d_gates.sum(-1), 2)


@hypothesis.given(seed=SEEDS)
@hypothesis.settings(deadline=None, max_examples=20)
def test_batch_priority_keeps_the_largest_gates(seed):
    gates, _ = random_gates(seed, 1, 32, 4)
    a = top_k(2, 5, True)(gates, jnp.ones((1, 32), bool), jnp.zeros(4))
    expert, kept = np.asarray(a.expert[0]), np.asarray(a.slot[0]) < 5
    best = np.asarray(gates[0]).max(-1)
    for e in range(4):
        for choice in range(2):
            mine = expert[:, choice] == e
            lost = mine & ~kept[:, choice]
            if lost.any():
                found = mine & kept[:, choice]
                assert not found.any() or best[found].min() >= best[lost].max()
                # First choices come first: none is lost to a second one.
                assert choice == 1 or not (kept[:, 1] & (expert[:, 1] == e)).any()


def test_renormalized_weights_sum_to_one_or_are_zero():
    gates, valid = random_gates(5, 2, 9, 4, 0.6)
    total = top_k_router.top_k(gates, 2, 1, valid=valid).renormalize().weight.sum(-1)
    np.testing.assert_allclose(total, valid.astype(np.float32), rtol=1e-6)


@pytest.mark.parametrize("k", [2, 4])
def test_counts_are_choices_before_and_after_capacity(k):
    gates, valid = random_gates(2, 2, 9, 4, 0.7)
    a = top_k_router.top_k(gates, k, 2, valid=valid)
    routed, kept = a.counts(valid)
    want_routed, want_kept = np.zeros((2, 9, 4)), np.zeros((2, 9, 4))
    for g, m, j in np.ndindex(2, 9, k):
        want_routed[g, m, a.expert[g, m, j]] += bool(valid[g, m])
        want_kept[g, m, a.expert[g, m, j]] += bool(a.slot[g, m, j] < 2)
    np.testing.assert_array_equal(routed, want_routed)
    np.testing.assert_array_equal(kept, want_kept)


@pytest.mark.parametrize(("k", "capacity"), [(0, 1), (5, 1), (1, 0)])
def test_top_k_refuses_bad_arguments(k, capacity):
    with pytest.raises(ValueError, match="must be"):
        top_k_router.top_k(jnp.ones((1, 2, 4)) / 4, k, capacity)
