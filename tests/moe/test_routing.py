"""Assignments and capacity against oracles in plain Python."""

import math
from fractions import Fraction

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.moe.routers.gates import SEEDS, VALID, check_slots, random_gates
from vimoe_jax.moe import routing


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
        index, values = routing.find_largest(scores, k)
        np.testing.assert_array_equal(index, expected)
        np.testing.assert_array_equal(values, np.take_along_axis(np.asarray(scores), expected, -1))


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
