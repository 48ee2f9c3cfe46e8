"""Routing against oracles in plain Python and against what its docstrings promise."""

import functools
import math
from fractions import Fraction

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vimoe_jax.moe import routing

SEEDS = st.integers(0, 10_000)
VALID = st.sampled_from([0.0, 0.6, 1.0])
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


def random_gates(seed, groups, tokens, experts, valid_fraction=1.0, ties=False):
    rng = np.random.default_rng(seed)
    if ties:
        gates = rng.integers(1, 4, (groups, tokens, experts)) / 4
    else:
        gates = jax.nn.softmax(jnp.asarray(rng.normal(size=(groups, tokens, experts)) * 2))
    valid = rng.random((groups, tokens)) < valid_fraction
    return jnp.asarray(gates, jnp.float32), jnp.asarray(valid)


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


def check_slots(expert, slot, wanted, num_experts, capacity):
    """Slots are used once and without gaps; nothing wanted is dropped while there is room."""
    assert (slot[~wanted] >= capacity).all()
    for g, e in np.ndindex(len(expert), num_experts):
        mine = (expert[g] == e) & wanted[g]
        taken = np.sort(slot[g][mine & (slot[g] < capacity)])
        np.testing.assert_array_equal(taken, np.arange(min(mine.sum(), capacity)))


@functools.cache
def top_k(k, capacity, batch_priority):
    """Compiled once for each shape."""

    def f(gates, valid, bias):
        return routing.top_k(
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


@pytest.mark.parametrize("num", [1, 127, 512, 513, 640, 1000])
def test_ranks_count_earlier_entries_of_the_same_expert(num):
    queue = np.random.default_rng(num).integers(0, 4, (2, num))  # expert 3 is the sentinel
    queue[0, : num // 2] = 1  # a long run across blocks
    rank = np.asarray(routing._rank_in_queue(jnp.asarray(queue), 3))
    for g, e in np.ndindex(2, 3):
        mine = rank[g][queue[g] == e]
        np.testing.assert_array_equal(mine, np.arange(len(mine)))


@pytest.mark.parametrize("ties", [False, True])
def test_maxima_in_turn_choose_what_a_sort_chooses(ties):
    scores, _ = random_gates(0, 2, 40, 12, ties=ties)
    for k in range(1, 13):
        expected = np.argsort(-np.asarray(scores), axis=-1, kind="stable")[..., :k]
        index, values = routing.largest(scores, k)
        np.testing.assert_array_equal(index, expected)
        np.testing.assert_array_equal(values, np.take_along_axis(np.asarray(scores), expected, -1))


def test_of_equal_gates_the_lower_expert_comes_first():
    for k in (1, 3, 9, 10):
        a = routing.top_k(jnp.full((1, 3, 10), 0.1), k, 3)
        np.testing.assert_array_equal(a.expert, np.broadcast_to(np.arange(k), (1, 3, k)))


def test_weights_are_the_gates_and_zero_for_padding():
    gates, _ = random_gates(0, 2, 6, 4)
    valid = jnp.asarray([[True] * 4 + [False] * 2, [False] * 6])
    a = routing.top_k(gates, 2, 3, valid=valid)
    expected = -np.sort(-np.asarray(gates), axis=-1)[..., :2] * np.asarray(valid)[..., None]
    np.testing.assert_allclose(a.weight, expected, rtol=1e-6)
    assert (np.asarray(a.slot)[~np.asarray(valid)] >= 3).all()


def test_the_bias_is_for_choosing_and_not_for_combining():
    gates, _ = random_gates(1, 1, 7, 4)
    a = routing.top_k(gates, 1, 7, bias=jnp.asarray([0.0, 0.0, 0.0, 2.0]))
    np.testing.assert_array_equal(a.expert, 3)
    np.testing.assert_array_equal(a.weight[..., 0], gates[..., 3])

    def total(gates, bias):
        return routing.top_k(gates, 2, 7, bias=bias).weight.sum()

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
    total = routing.top_k(gates, 2, 1, valid=valid).renormalized().weight.sum(-1)
    np.testing.assert_allclose(total, valid.astype(np.float32), rtol=1e-6)


@pytest.mark.parametrize("k", [2, 4])
def test_counts_are_choices_before_and_after_capacity(k):
    gates, valid = random_gates(2, 2, 9, 4, 0.7)
    a = routing.top_k(gates, k, 2, valid=valid)
    routed, kept = a.counts(4, 2, valid)
    want_routed, want_kept = np.zeros((2, 9, 4)), np.zeros((2, 9, 4))
    for g, m, j in np.ndindex(2, 9, k):
        want_routed[g, m, a.expert[g, m, j]] += bool(valid[g, m])
        want_kept[g, m, a.expert[g, m, j]] += bool(a.slot[g, m, j] < 2)
    np.testing.assert_array_equal(routed, want_routed)
    np.testing.assert_array_equal(kept, want_kept)


@pytest.mark.parametrize(("k", "capacity"), [(0, 1), (5, 1), (1, 0)])
def test_top_k_refuses_bad_arguments(k, capacity):
    with pytest.raises(ValueError, match="must be"):
        routing.top_k(jnp.ones((1, 2, 4)) / 4, k, capacity)


# --- expert choice -----------------------------------------------------------------------------


@functools.cache
def expert_choice(capacity):
    """The assignment, and the gradient of <weights, target>."""

    def f(gates, valid, target):
        a = routing.expert_choice(gates, capacity, valid=valid)
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
    a = routing.expert_choice(gates, 2, valid=valid)
    routed, kept = a.counts(4, 2, valid)
    np.testing.assert_array_equal(routed, kept)
    assert float(kept.sum()) == 2 * 4 * 2


def test_expert_choice_refuses_no_capacity():
    with pytest.raises(ValueError, match="capacity must be"):
        routing.expert_choice(jnp.ones((1, 2, 4)) / 4, 0)


# --- hash --------------------------------------------------------------------------------------


@hypothesis.given(
    num_ids=st.integers(0, 200), num_experts=st.integers(1, 12), k=st.integers(1, 12), seed=SEEDS
)
@hypothesis.settings(deadline=None, max_examples=60)
def test_hash_table_is_even_and_repeatable(num_ids, num_experts, k, seed):
    k = min(k, num_experts)
    table = routing.hash_table(num_ids, num_experts, k, seed)
    assert table.shape == (num_ids, k) and table.dtype == np.int32
    assert ((table >= 0) & (table < num_experts)).all()
    assert all(len(set(row)) == k for row in table.tolist())
    counts = np.bincount(table[:, 0], minlength=num_experts)
    assert counts.max() - counts.min() <= 1
    np.testing.assert_array_equal(table, routing.hash_table(num_ids, num_experts, k, seed))


def test_hash_tables_differ_by_seed():
    assert (routing.hash_table(100, 8, 2) != routing.hash_table(100, 8, 2, seed=1)).any()


@pytest.mark.parametrize("k", [0, 5])
def test_hash_table_refuses_bad_k(k):
    with pytest.raises(ValueError, match="k must be between 1 and E = 4"):
        routing.hash_table(10, 4, k)


@hypothesis.given(seed=SEEDS, valid_fraction=VALID, spread=st.sampled_from([0, 1, 7]))
@hypothesis.settings(deadline=None, max_examples=30)
def test_settled_experts_are_queued_like_chosen_ones(seed, valid_fraction, spread):
    rng = np.random.default_rng(seed)
    expert = (rng.integers(0, spread + 1, (2, 7, 1)) + np.arange(3)) % 4
    valid = rng.random((2, 7)) < valid_fraction
    a = _assign(expert, np.full(expert.shape, 1 / 3, np.float32), valid)
    a = jax.tree.map(np.asarray, a)
    wanted = np.broadcast_to(valid[..., None], expert.shape)
    check_slots(a.expert, a.slot, wanted, 4, 2)
    np.testing.assert_array_equal(a.weight, np.where(wanted, np.float32(1 / 3), 0))


_assign = jax.jit(lambda expert, weight, valid: routing.assign(expert, weight, 4, 2, valid=valid))


# --- soft --------------------------------------------------------------------------------------


@functools.cache
def soft():
    def f(logits, valid, target):
        dispatch, combine = routing.soft(logits, valid)
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
    for a, b in zip(
        routing.soft(logits), routing.soft(logits, jnp.ones((1, 5), bool)), strict=True
    ):
        np.testing.assert_allclose(a, b, rtol=1e-6)


# --- capacity ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((100, 10, 1, 1.1), 11),  # 12 in floats
        ((64, 8, 2, 1.0), 16),
        ((64, 8, 2, 1.05), 17),
        ((3, 64, 1, 0.01), 1),
        ((1000, 1, 1, 1e-05), 1),
        ((8, 2, 2, 5.0), 8),  # never more than the tokens
        ((8, 2, 2, float("inf")), 8),
    ],
)
def test_capacity(arguments, expected):
    assert routing.capacity(*arguments, multiple_of=1) == expected


@hypothesis.given(
    tokens=st.integers(1, 5000),
    num_experts=st.integers(1, 200),
    k=st.integers(1, 8),
    hundredths=st.integers(1, 500),
    multiple_of=st.sampled_from([1, 4, 8]),
)
def test_capacity_is_exact_in_decimals(tokens, num_experts, k, hundredths, multiple_of):
    slots = math.ceil(Fraction(tokens * k * hundredths, 100 * num_experts))
    expected = min(-(-slots // multiple_of) * multiple_of, tokens)
    got = routing.capacity(tokens, num_experts, k, hundredths / 100, multiple_of=multiple_of)
    assert got == expected >= 1


def test_capacity_is_rounded_up_to_a_multiple():
    assert routing.capacity(64, 8, 2, 1.05) == 20
    assert routing.capacity(100, 10, 1, 1.1) == 12
    assert routing.capacity(100, 10, 1, 1.1, multiple_of=11) == 11


@pytest.mark.parametrize(
    "bad",
    [
        (0, 8, 2, 1.0),
        (8, 0, 2, 1.0),
        (8, 8, 0, 1.0),
        (8, 8, 2, 0.0),
        (8, 8, 2, -1.0),
        (8, 8, 2, float("nan")),
    ],
)
def test_capacity_refuses_what_leaves_no_slot(bad):
    with pytest.raises(ValueError, match="positive"):
        routing.capacity(*bad)
    with pytest.raises(ValueError, match="positive"):
        routing.capacity(8, 8, 2, 1.0, multiple_of=0)
