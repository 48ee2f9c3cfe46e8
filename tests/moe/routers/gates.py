"""Gates for the routers' tests, and what holds for the slots of any assignment."""

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np

SEEDS = st.integers(0, 10_000)
VALID = st.sampled_from([0.0, 0.6, 1.0])


def random_gates(seed, groups, tokens, experts, valid_fraction=1.0, ties=False):
    rng = np.random.default_rng(seed)
    if ties:
        gates = rng.integers(1, 4, (groups, tokens, experts)) / 4
    else:
        gates = jax.nn.softmax(jnp.asarray(rng.normal(size=(groups, tokens, experts)) * 2))
    valid = rng.random((groups, tokens)) < valid_fraction
    return jnp.asarray(gates, jnp.float32), jnp.asarray(valid)


def check_slots(expert, slot, wanted, num_experts, capacity):
    """Slots are used once and without gaps; nothing wanted is dropped while there is room."""
    assert (slot[~wanted] >= capacity).all()
    for g, e in np.ndindex(len(expert), num_experts):
        mine = (expert[g] == e) & wanted[g]
        taken = np.sort(slot[g][mine & (slot[g] < capacity)])
        np.testing.assert_array_equal(taken, np.arange(min(mine.sum(), capacity)))
