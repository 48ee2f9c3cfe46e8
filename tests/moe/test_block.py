"""The MoE layer: groups, padding, drops, statistics."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from vimoe_jax.moe.block import MoE, weighted_losses
from vimoe_jax.moe.options import MoEOptions, moe_layers

D, E = 6, 4
OPTIONS = MoEOptions(num_experts=E, experts_per_token=2, mlp_dim=8, group_size=8)


def make(**changes):
    options = dataclasses.replace(OPTIONS, **changes)
    return MoE(
        options, D, 8, D, activation="swiglu", bias=False, dtype=jnp.float32, rngs=nnx.Rngs(0)
    )


def tokens(shape=(3, 5), seed=0):
    x = jax.random.normal(jax.random.key(seed), (*shape, D))
    return x, jnp.ones(shape, bool), jnp.zeros(shape, jnp.int32)


def test_without_drops_neither_groups_nor_neighbours_matter():
    x, valid, kind = tokens()
    y, report = make()(x, valid, kind, num_kinds=1)
    one_group, _ = make(group_size=1000)(x, valid, kind, num_kinds=1)
    np.testing.assert_allclose(y, one_group, atol=1e-6)
    alone, _ = make()(x[1:2, 2:3], valid[1:2, 2:3], kind[1:2, 2:3], num_kinds=1)
    np.testing.assert_allclose(y[1, 2], alone[0, 0], atol=1e-6)
    assert float(report.drop_fraction()) == 0


def test_k_equal_e_is_the_gated_sum_of_all_experts():
    x, valid, kind = tokens()
    layer = make(experts_per_token=E)
    y, _ = layer(x, valid, kind, num_kinds=1)
    gates = jax.nn.softmax(x @ layer.router[...])
    out = layer.experts(jnp.broadcast_to(x.reshape(1, 1, -1, D), (1, E, 15, D)))[0]
    expected = jnp.einsum("te,eto->to", gates.reshape(-1, E), out).reshape(x.shape)
    np.testing.assert_allclose(y, expected, atol=1e-5)


def test_padding_changes_nothing_and_gets_nothing():
    x, valid, kind = tokens()
    _, report = make()(x, valid, kind, num_kinds=1, key=jax.random.key(1))
    more = jnp.concatenate([x, 100 * jnp.ones((2, 5, D))])
    more_valid = jnp.concatenate([valid, jnp.zeros((2, 5), bool)])
    z, padded = make()(more, more_valid, jnp.zeros((5, 5), int), num_kinds=1)
    full, _ = make()(x, valid, kind, num_kinds=1)
    np.testing.assert_allclose(z[:3], full, atol=1e-6)
    np.testing.assert_array_equal(z[3:], 0)
    assert float(padded.tokens.sum()) == 15 == float(report.tokens.sum())
    assert float(padded.routed.sum()) == 30


def test_statistics_count_drops_by_kind():
    x, valid, _ = tokens((4, 8))
    kind = jnp.broadcast_to(jnp.arange(8) % 3, (4, 8))
    layer = make(capacity_factor=0.5, noise_std=0.0)
    # A constant input sends every token to the same experts: all but C of each group are dropped.
    _, report = layer(jnp.ones_like(x), valid, kind, num_kinds=3, key=jax.random.key(0))
    slots = 4  # ceil(8 · 2 · 0.5 / 4) = 2, rounded up to 4
    assert float(report.drop_fraction()) == pytest.approx(1 - slots / 8)
    assert np.asarray(report.routed).sum(-1).tolist() == [24.0, 24.0, 16.0]
    np.testing.assert_allclose(report.load().max(), 0.5)


def test_losses_are_weighted_by_their_options():
    x, valid, kind = tokens()
    layer = make(balance_weight=2.0, z_weight=3.0, importance_weight=0.5, load_weight=0.25)
    _, report = layer(x, valid, kind, num_kinds=1, key=jax.random.key(0))
    expected = (
        2 * report.losses["balance"]
        + 3 * report.losses["z"]
        + 0.5 * report.losses["importance"]
        + 0.25 * report.losses["load"]
    )
    np.testing.assert_allclose(weighted_losses(layer.options, report), expected, rtol=1e-6)


def test_dispatchers_give_the_same_gradients_through_the_whole_layer():
    x, valid, kind = tokens((3, 7))

    def gradients(dispatcher):
        graph, state = nnx.split(make(dispatcher=dispatcher, capacity_factor=0.75))

        def loss(state, x):
            y, report = nnx.merge(graph, state)(x, valid, kind, num_kinds=1, key=jax.random.key(3))
            return jnp.sum(jnp.sin(y)) + weighted_losses(OPTIONS, report)

        return jax.grad(loss, argnums=(0, 1))(state, x)

    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5),
        gradients("einsum"),
        gradients("gather"),
    )


@pytest.mark.parametrize(
    ("placement", "expected"),
    [
        ("every_2", [1, 3, 5]),
        ("all", [0, 1, 2, 3, 4, 5]),
        ("last_2", [3, 5]),
        ((0, 4), [0, 4]),
    ],
)
def test_placement(placement, expected):
    layers = moe_layers(dataclasses.replace(OPTIONS, placement=placement), 6)
    assert [i for i, is_moe in enumerate(layers) if is_moe] == expected


@pytest.mark.parametrize("placement", ["every_0", "some", (7,), ()])
def test_bad_placement(placement):
    with pytest.raises(ValueError, match="must"):
        moe_layers(dataclasses.replace(OPTIONS, placement=placement), 6)
