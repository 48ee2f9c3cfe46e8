"""Routing against an oracle in plain Python, over random shapes."""

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vimoe_jax.moe import routing


def random_gates(seed, groups, tokens, experts, valid_fraction=1.0):
    rng = np.random.default_rng(seed)
    gates = jax.nn.softmax(jnp.asarray(rng.normal(size=(groups, tokens, experts)) * 2))
    return gates, jnp.asarray(rng.random((groups, tokens)) < valid_fraction)


def oracle(gates, k, capacity, batch_priority, valid):
    """Fills queues one choice at a time, in the order the papers give."""
    groups, tokens, experts = gates.shape
    slots = np.full((groups, tokens, k), capacity)
    for g in range(groups):
        order = range(tokens)
        if batch_priority:
            best = np.where(valid[g], gates[g].max(-1), 0)
            order = np.argsort(-best, kind="stable")
        chosen = np.argsort(-gates[g], axis=-1, kind="stable")[:, :k]
        used = [0] * experts
        for choice in range(k):
            for token in order:
                if valid[g, token]:
                    expert = chosen[token, choice]
                    slots[g, token, choice] = used[expert]
                    used[expert] += 1
    return slots


top_k = jax.jit(routing.top_k, static_argnames=("k", "capacity", "batch_priority"))


@hypothesis.given(
    seed=st.integers(0, 10_000),
    groups=st.sampled_from([1, 2]),
    tokens=st.sampled_from([1, 11]),
    experts=st.sampled_from([1, 4]),
    k=st.integers(1, 4),
    capacity=st.sampled_from([1, 3, 11]),
    batch_priority=st.booleans(),
    valid_fraction=st.sampled_from([0.0, 0.6, 1.0]),
)
@hypothesis.settings(deadline=None, max_examples=60)
def test_top_k_fills_slots_as_the_oracle_does(
    seed, groups, tokens, experts, k, capacity, batch_priority, valid_fraction
):
    k = min(k, experts)
    gates, valid = random_gates(seed, groups, tokens, experts, valid_fraction)
    a = top_k(gates, k, capacity, batch_priority=batch_priority, valid=valid)
    expected = oracle(np.asarray(gates), k, capacity, batch_priority, np.asarray(valid))
    slot, expert = np.asarray(a.slot), np.asarray(a.expert)
    np.testing.assert_array_equal(np.minimum(slot, capacity), np.minimum(expected, capacity))
    # No slot is used twice, and none is left empty while a valid token was dropped for it.
    for g in range(groups):
        kept = slot[g] < capacity
        pairs = list(zip(expert[g][kept].tolist(), slot[g][kept].tolist(), strict=True))
        assert len(pairs) == len(set(pairs))
        for e in set(expert[g][(slot[g] >= capacity) & np.asarray(valid)[g][:, None]].tolist()):
            assert sum(p[0] == e for p in pairs) == capacity


def test_weights_are_the_gates_and_zero_for_padding():
    gates, _ = random_gates(0, 2, 6, 4)
    valid = jnp.asarray([[True] * 4 + [False] * 2, [False] * 6])
    a = routing.top_k(gates, 2, 3, valid=valid)
    expected = -np.sort(-np.asarray(gates), axis=-1)[..., :2] * np.asarray(valid)[..., None]
    np.testing.assert_allclose(a.weight, expected, rtol=1e-6)
    assert (np.asarray(a.slot)[~np.asarray(valid)] >= 3).all()


def test_batch_priority_keeps_the_largest_gates():
    gates, _ = random_gates(3, 1, 32, 4)
    first = np.asarray(routing.top_k(gates, 1, 2, batch_priority=True).slot)[0, :, 0] < 2
    expert = np.asarray(gates[0]).argmax(-1)
    for e in range(4):
        best = np.asarray(gates[0]).max(-1)
        mine = expert == e
        if mine.sum() > 2:
            assert best[mine & first].min() >= best[mine & ~first].max()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((100, 10, 1, 1.1), 11),  # 12 in floats
        ((64, 8, 2, 1.0), 16),
        ((64, 8, 2, 1.05), 17),
        ((3, 64, 1, 0.01), 1),
        ((8, 2, 2, 5.0), 8),  # never more than the tokens
    ],
)
def test_capacity(arguments, expected):
    assert routing.capacity(*arguments, multiple_of=1) == expected


def test_capacity_is_rounded_up_to_a_multiple():
    assert routing.capacity(64, 8, 2, 1.05) == 20


@pytest.mark.parametrize("bad", [(0, 8, 2, 1.0), (8, 8, 2, 0.0), (8, 8, 0, 1.0)])
def test_capacity_refuses_what_leaves_no_slot(bad):
    with pytest.raises(ValueError, match="positive"):
        routing.capacity(*bad)


@pytest.mark.parametrize(("k", "capacity"), [(0, 1), (5, 1), (1, 0)])
def test_top_k_refuses_bad_arguments(k, capacity):
    with pytest.raises(ValueError, match="must be"):
        routing.top_k(jnp.ones((1, 2, 4)) / 4, k, capacity)
