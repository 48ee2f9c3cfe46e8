"""The MoE layer: groups, padding, drops, statistics, with every router."""

import dataclasses
import functools

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from vimoe_jax.moe import dispatch
from vimoe_jax.moe.block import MoE, rebalance_bias, weighted_losses
from vimoe_jax.moe.experts import Experts, check_mlp
from vimoe_jax.moe.options import MoEOptions

D, E, F, IDS = 6, 4, 8, 50
OPTIONS = MoEOptions(num_experts=E, experts_per_token=2, mlp_dim=F, group_size=8)
ROUTERS = {  # with what each of them needs
    "top_k": {"bias_rate": 0.01, "balance_weight": 1.0, "z_weight": 1.0},
    "expert_choice": {"balance_weight": 1.0, "z_weight": 1.0},
    "soft": {"soft_slots": 2},
    "hash": {},
}
KEY = jax.random.key(1)


@functools.cache
def split(options):
    layer = MoE(
        options, D, F, D, activation="swiglu", bias=False, dtype=jnp.float32, rngs=nnx.Rngs(0),
        num_ids=IDS,
    )  # fmt: skip
    return nnx.split(layer)


@functools.cache
def compiled(options, train, num_kinds):
    graph, _ = split(options)

    def f(state, x, valid, kind, ids, key):
        layer = nnx.merge(graph, state)
        key = key if train else None
        return layer(x, valid, kind, num_kinds=num_kinds, key=key, ids=ids)

    return jax.jit(f)


class Layer:
    """A layer that is compiled once for its options and the shape of its input."""

    def __init__(self, **changes):
        self.options = dataclasses.replace(OPTIONS, **changes)
        self.state = nnx.clone(split(self.options)[1])

    def __call__(self, x, valid=None, kind=None, ids=None, key=None, num_kinds=1):
        shape = x.shape[:-1]
        valid = jnp.ones(shape, bool) if valid is None else valid
        kind, ids = (np.zeros(shape, np.int32) if a is None else a for a in (kind, ids))
        f = compiled(self.options, key is not None, num_kinds)
        return f(self.state, x, valid, kind, ids, KEY if key is None else key)

    def module(self):
        return nnx.merge(split(self.options)[0], self.state)


def tokens(shape=(3, 5), seed=0):
    rng = np.random.default_rng(seed)
    return np.float32(rng.normal(size=(*shape, D))), rng.integers(0, IDS, shape)


def router_options(router):
    return {"router": router, **ROUTERS[router]}


def tight(router):
    """A layer with every part that its router can have, where tokens compete."""
    return Layer(
        **router_options(router), shared_experts=1, noise_std=0.0, capacity_factor=0.5, group_size=5
    )


def expert(layer, e, x):
    """One expert on rows."""
    w_in, w_out = (np.asarray(layer.state["experts"][n][...][e]) for n in ("w_in", "w_out"))
    return jax.nn.silu(x @ w_in[:, 0]) * (x @ w_in[:, 1]) @ w_out


# --- who depends on whom -----------------------------------------------------------------------


def test_without_drops_neither_groups_nor_neighbours_matter():
    x, _ = tokens()
    y, report = Layer()(x)
    one_group, _ = Layer(group_size=1000)(x)
    np.testing.assert_allclose(y, one_group, atol=1e-6)
    alone, _ = Layer()(x[1:2, 2:3])
    np.testing.assert_allclose(y[1, 2], alone[0, 0], atol=1e-6)
    assert float(report.drop_fraction()) == 0


@pytest.mark.parametrize("train", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("router", ROUTERS)
@hypothesis.given(seed=st.integers(0, 10_000), row=st.integers(0, 2))
@hypothesis.settings(deadline=None, max_examples=10)
def test_other_groups_do_not_matter(router, train, seed, row):
    """Nor, for the soft router, do other rows; for those with room for all, other tokens."""
    layer = tight(router)
    x, ids = tokens(seed=seed)
    other_x, other_ids = tokens(seed=seed + 1)
    keep = np.zeros(x.shape[:2], bool)
    keep[row] = True
    if not train and router in ("top_k", "hash"):
        keep[row] = np.arange(5) == seed % 5  # not even the row's other tokens
    key = KEY if train else None
    y, _ = layer(x, ids=ids, key=key)
    z, _ = layer(np.where(keep[..., None], x, other_x), ids=np.where(keep, ids, other_ids), key=key)
    np.testing.assert_allclose(np.asarray(y)[keep], np.asarray(z)[keep], atol=1e-6)


def test_within_a_group_tokens_compete():
    x, _ = tokens((1, 8))
    layer = Layer(noise_std=0.0, capacity_factor=0.5)
    y, _ = layer(np.broadcast_to(x[:, :1], x.shape), key=KEY)
    served = np.asarray(y[0] != 0).any(-1)
    assert served.tolist() == [True] * 4 + [False] * 4  # C = 4, in token order


def test_batch_priority_serves_the_surest_first():
    layer = Layer(noise_std=0.0, capacity_factor=0.5, batch_priority=True)
    x, _ = tokens((1, 1))
    sure = np.float32([1, 9, 2, 8, 3, 7, 4, 6]) / 5  # the same direction, ever longer
    y, _ = layer(x * sure[None, :, None], key=KEY)
    served = np.asarray(y[0] != 0).any(-1)
    assert served.tolist() == (sure > 1).tolist()


# --- padding -----------------------------------------------------------------------------------


@pytest.mark.parametrize("train", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("router", ROUTERS)
@hypothesis.given(seed=st.integers(0, 10_000), valid_fraction=st.sampled_from([0.0, 0.5, 0.9]))
@hypothesis.settings(deadline=None, max_examples=10)
def test_what_padding_holds_changes_nothing(router, train, seed, valid_fraction):
    layer = tight(router)
    x, ids = tokens(seed=seed)
    other_x, other_ids = tokens(seed=seed + 1)
    valid = np.random.default_rng(seed).random(x.shape[:2]) < valid_fraction
    key = KEY if train else None
    y, report = layer(x, valid, ids=ids, key=key)
    other = np.where(valid[..., None], x, 100 * other_x), np.where(valid, ids, other_ids)
    z, changed = layer(other[0], valid, ids=other[1], key=key)
    np.testing.assert_array_equal(np.asarray(y)[~valid], 0)
    np.testing.assert_array_equal(np.asarray(z)[~valid], 0)
    close((z, changed), (y, report))
    assert float(report.tokens.sum()) == valid.sum()
    if router in ("top_k", "hash"):
        assert float(report.routed.sum()) == 2 * valid.sum()


def close(a, b, tolerance=1e-5):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=tolerance, rtol=tolerance), a, b
    )


def test_padding_behind_changes_nothing():
    x, _ = tokens()
    y, report = Layer()(x)
    more = np.concatenate([x, 100 * np.ones((2, 5, D), np.float32)])
    valid = np.arange(5)[:, None] < [3] * 5
    z, padded = Layer()(more, valid)
    np.testing.assert_allclose(z[:3], y, atol=1e-6)
    np.testing.assert_array_equal(z[3:], 0)
    assert float(padded.tokens.sum()) == 15 == float(report.tokens.sum())
    assert float(padded.routed.sum()) == 30


@functools.cache
def gradients(options):
    """Of everything the layer gives, with respect to its parameters and its input."""
    graph, state = split(options)
    graph, params, rest = nnx.split(nnx.merge(graph, state), nnx.Param, ...)

    def loss(params, x, valid, ids):
        layer = nnx.merge(graph, params, rest)
        y, report = layer(x, valid, jnp.zeros_like(ids), num_kinds=1, key=KEY, ids=ids)
        return jnp.sum(jnp.sin(y)) + weighted_losses(options, report)

    gradient = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))
    return lambda *args: gradient(params, *args)


@pytest.mark.parametrize("router", ROUTERS)
def test_gradients_are_finite_even_without_tokens(router):
    options = dataclasses.replace(OPTIONS, **router_options(router), shared_experts=1)
    x, ids = tokens()
    for valid in (np.zeros((3, 5), bool), np.ones((3, 5), bool)):
        value, (d_params, d_x) = gradients(options)(x, valid, ids)
        leaves = jax.tree.leaves((value, d_params, d_x))
        assert all(np.isfinite(leaf).all() for leaf in leaves)
        # Every parameter learns if there is something to learn from, and none if not.
        assert all(np.any(leaf) == valid.any() for leaf in leaves)


# --- wrong arguments ---------------------------------------------------------------------------


def make(options=OPTIONS, in_dim=D, mlp_dim=F, out_dim=D, activation="gelu", num_ids=0):
    how = dict(activation=activation, bias=False, dtype=jnp.float32, rngs=nnx.Rngs(0))
    return MoE(options, in_dim, mlp_dim, out_dim, **how, num_ids=num_ids)


@pytest.mark.parametrize(
    ("wrong", "complaint"),
    [
        ({"activation": "swiglo"}, "MoE.activation: must be one of .*did you mean 'swiglu'"),
        ({"in_dim": 0}, "MoE.in_dim: must be an int of at least 1, not 0"),
        ({"out_dim": -1}, "MoE.out_dim: must be an int of at least 1, not -1"),
        ({"mlp_dim": -1}, "MoE.mlp_dim: must be an int of at least 1, not -1"),
        ({"options": MoEOptions()}, "MoE.options.num_experts: 0 means a dense layer"),
        (
            {"options": dataclasses.replace(OPTIONS, granularity=3)},
            "MoE.options.granularity: 3 does not divide the hidden width 8",
        ),
        (
            {"options": dataclasses.replace(OPTIONS, router="soft")},
            "MoE.options.soft_slots: the soft router needs a number of slots per expert and row",
        ),
    ],
    ids=str,
)
def test_a_layer_refuses_what_it_cannot_be_made_of(wrong, complaint):
    with pytest.raises(ValueError, match=complaint):
        make(**wrong)


def test_experts_alone_refuse_it_too():
    with pytest.raises(ValueError, match=r"Experts\.mlp_dim: must be an int .*, not 2\.5"):
        check_mlp("Experts", "gelu", in_dim=3, mlp_dim=2.5)
    with pytest.raises(ValueError, match=r"Experts\.activation: must be one of"):
        Experts(2, D, F, D, activation="relu", bias=False, dtype=jnp.float32, rngs=nnx.Rngs(0))


# --- routers -----------------------------------------------------------------------------------


def test_k_equal_e_is_the_gated_sum_of_all_experts():
    x, _ = tokens()
    layer = Layer(experts_per_token=E)
    y, _ = layer(x)
    gates = jax.nn.softmax(x @ layer.state["router"][...])
    expected = sum(gates[..., e, None] * expert(layer, e, x) for e in range(E))
    np.testing.assert_allclose(y, expected, atol=1e-5)


@pytest.mark.parametrize("renormalize", [False, True])
def test_top_k_is_the_sum_of_the_largest(renormalize):
    x, _ = tokens()
    layer = Layer(renormalize=renormalize)
    y, _ = layer(x)
    gates = np.array(jax.nn.softmax(x @ layer.state["router"][...]))
    gates[gates < np.sort(gates)[..., -2:-1]] = 0
    if renormalize:
        gates /= gates.sum(-1, keepdims=True)
    expected = sum(gates[..., e, None] * expert(layer, e, x) for e in range(E))
    np.testing.assert_allclose(y, expected, atol=1e-5)


def test_expert_choice_takes_even_shares():
    x, _ = tokens((2, 8))
    layer = Layer(router="expert_choice", capacity_factor=1.0, renormalize=False)
    y, report = layer(x)
    gates = np.asarray(jax.nn.softmax(x @ layer.state["router"][...]))
    expected, taken = np.zeros_like(x), np.zeros((2, 8, E), bool)
    for g in range(2):
        for e in range(E):
            mine = np.argsort(-gates[g, :, e])[:4]  # 8 · 2 · 1.0 / 4
            expected[g, mine] += gates[g, mine, e, None] * expert(layer, e, x[g, mine])
            taken[g, mine, e] = True
    np.testing.assert_allclose(y, expected, atol=1e-5)
    np.testing.assert_array_equal(report.routed, taken.sum((0, 1))[None])
    assert float(report.max_load()) == 1 and float(report.drop_fraction()) == 0
    assert float(report.unserved.sum()) == (~taken.any(-1)).sum()


def test_hash_takes_the_tables_experts_evenly():
    x, ids = tokens()
    layer = Layer(router="hash", renormalize=False)
    y, _ = layer(x, ids=ids)
    table = np.asarray(layer.state["table"][...])
    assert table.shape == (IDS, 2)
    expected = np.zeros_like(x)
    for at in np.ndindex(3, 5):
        expected[at] = sum(expert(layer, e, x[at]) for e in table[ids[at]]) / 2
    np.testing.assert_allclose(y, expected, atol=1e-5)
    assert "router" not in layer.state


def test_hash_needs_ids():
    options = dataclasses.replace(OPTIONS, router="hash")
    with pytest.raises(ValueError, match=r"MoE\.num_ids: .* number of token ids, not 0"):
        make(options)
    x, valid = jnp.ones((1, 3, D)), jnp.ones((1, 3), bool)
    with pytest.raises(ValueError, match=r"MoE\.ids: the hash router needs those of the tokens"):
        make(options, num_ids=IDS)(x, valid, jnp.zeros((1, 3), int), num_kinds=1)


def test_soft_is_the_papers_algorithm():
    x, _ = tokens()
    layer = Layer(router="soft", soft_slots=2)
    y, report = layer(x)
    slots = np.asarray(layer.state["slots"][...])
    assert slots.shape == (D, E, 2)
    unit = slots / np.linalg.norm(slots, axis=0)
    logits = np.einsum("bmd,dec->bmec", x / np.linalg.norm(x, axis=-1, keepdims=True), unit)
    mix = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    back = np.exp(logits) / np.exp(logits).sum((2, 3), keepdims=True)
    expected = np.zeros_like(x)
    for e in range(E):
        out = expert(layer, e, np.einsum("bmc,bmd->bcd", mix[:, :, e], x))
        expected += np.einsum("bmc,bcd->bmd", back[:, :, e], out)
    np.testing.assert_allclose(y, expected, atol=1e-5)
    assert float(report.drop_fraction()) == 0


def test_the_bias_chooses_and_does_not_combine():
    x, _ = tokens()
    layer = Layer(bias_rate=0.01, experts_per_token=1, renormalize=False)
    without, _ = Layer(experts_per_token=1, renormalize=False)(x)
    np.testing.assert_array_equal(layer(x)[0], without)  # it begins at zero
    layer.state["bias"][...] = jnp.float32([0, 0, 2, 0])
    y, report = layer(x)
    gates = jax.nn.softmax(x @ layer.state["router"][...])
    np.testing.assert_allclose(y, gates[..., 2, None] * expert(layer, 2, x), atol=1e-5)
    assert np.asarray(report.load()).tolist() == [0, 0, 1, 0]


def test_rebalancing_moves_towards_the_even_share():
    bias = jnp.float32([[0.5, 0, 0, -1], [0, 0, 0, 0]])
    routed = jnp.float32([[[3, 1, 0, 0], [1, 1, 2, 0]], [[2, 2, 2, 2], [1, 1, 1, 1]]])
    got = rebalance_bias(bias, routed, 0.25)
    np.testing.assert_allclose(got, [[0.25, 0, 0, -0.75], [0, 0, 0, 0]])


@hypothesis.given(st.lists(st.integers(0, 9), min_size=E, max_size=E), st.floats(0.001, 1))
@hypothesis.settings(deadline=None, max_examples=30)
def test_rebalancing_moves_every_bias_by_the_rate_or_not_at_all(load, rate):
    load = np.asarray(load)
    moved = np.asarray(rebalance_bias(jnp.zeros(E), jnp.float32(load)[None], rate))
    np.testing.assert_allclose(moved, rate * np.sign(load.mean() - load), rtol=1e-6)


def test_rebalancing_balances():
    """Repeated over the same tokens, the busiest expert's share falls."""
    layer = Layer(bias_rate=0.01, experts_per_token=1)
    x, _ = tokens((8, 8))
    x += 1.0  # a common direction makes some experts popular
    _, before = layer(x)
    for _ in range(60):
        _, report = layer(x)
        bias = layer.state["bias"]
        bias[...] = rebalance_bias(bias[...], report.routed, 0.01)
    _, after = layer(x)
    assert float(after.max_load()) < 1.3 < 1.6 < float(before.max_load())


# --- granularity and shared experts ------------------------------------------------------------


@pytest.mark.parametrize("k", [2, E])
def test_experts_cut_in_two_give_half_each(k):
    """With the same gates for both halves of an expert, K·g of E·g give what K of E do."""
    x, _ = tokens()
    whole, cut = Layer(experts_per_token=k), Layer(experts_per_token=k, granularity=2)
    assert cut.state["experts"]["w_in"][...].shape == (2 * E, D, 2, F // 2)
    cut.state["router"][...] = jnp.repeat(whole.state["router"][...], 2, axis=1)
    w_in, w_out = (whole.state["experts"][n][...] for n in ("w_in", "w_out"))
    halves = w_in.reshape(E, D, 2, 2, F // 2).transpose(0, 3, 1, 2, 4)
    cut.state["experts"]["w_in"][...] = halves.reshape(2 * E, D, 2, F // 2)
    cut.state["experts"]["w_out"][...] = w_out.reshape(2 * E, F // 2, D)
    y, report = cut(x)
    np.testing.assert_allclose(2 * y, whole(x)[0], atol=1e-5)
    assert float(report.routed.sum()) == 15 * k * 2


@pytest.mark.parametrize("router", ROUTERS)
def test_shared_experts_meet_every_token(router):
    x, ids = tokens()
    layer = Layer(**router_options(router), shared_experts=2)
    alone = Layer(**router_options(router))
    for name in alone.state:
        alone.state[name] = layer.state[name]
    w_in, w_out = (layer.state["shared"][n][...][0] for n in ("w_in", "w_out"))
    assert w_in.shape == (D, 2, 2 * F)
    everyone = jax.nn.silu(x @ w_in[:, 0]) * (x @ w_in[:, 1]) @ w_out
    np.testing.assert_allclose(layer(x, ids=ids)[0], alone(x, ids=ids)[0] + everyone, atol=1e-5)


# --- training and evaluation -------------------------------------------------------------------


@pytest.mark.parametrize("router", ["top_k", "hash"])
def test_k_at_evaluation_is_its_own(router):
    x, ids = tokens()
    layer = Layer(router=router, eval_experts_per_token=1)
    one = Layer(router=router, experts_per_token=1)
    if router == "hash":
        one.state["table"][...] = layer.state["table"][...][:, :1]
    y, report = layer(x, ids=ids)
    np.testing.assert_allclose(y, one(x, ids=ids)[0], atol=1e-6)
    assert float(report.routed.sum()) == 15
    _, report = layer(x, ids=ids, key=KEY)
    assert float(report.routed.sum()) == 30


def test_the_hash_table_has_room_for_the_larger_k():
    layer = Layer(router="hash", experts_per_token=1, eval_experts_per_token=3)
    assert layer.state["table"][...].shape == (IDS, 3)


def test_capacity_at_evaluation_is_its_own():
    x = np.ones((1, 8, D), np.float32)  # all tokens to the same experts
    for changes, key, kept in (
        ({"capacity_factor": 1.0, "eval_capacity_factor": 2.0}, KEY, 4),
        ({"capacity_factor": 1.0, "eval_capacity_factor": 2.0}, None, 8),
        ({"capacity_factor": 2.0, "eval_capacity_factor": 1.0}, None, 4),
        ({"capacity_factor": 1.0, "dispatcher": "dropless"}, KEY, 8),
    ):
        _, report = Layer(noise_std=0.0, **changes)(x, key=key)
        assert float(report.kept.sum()) == 2 * kept and float(report.routed.sum()) == 16


@pytest.mark.parametrize("names", [("gather", "einsum"), ("einsum", "dropless")])
def test_the_dispatcher_at_evaluation_is_its_own(monkeypatch, names):
    used = []

    class Stub:
        def run(self, experts, x):
            return x

    def make_dispatcher(name, assignment, *, backend, exchange_factor):
        used.append((name, backend, exchange_factor))
        return Stub()

    monkeypatch.setattr(dispatch, "make", make_dispatcher)
    monkeypatch.setattr(Experts, "backend", lambda _: "megablox")
    layer = Layer(dispatcher=names[0], eval_dispatcher=names[1], exchange_factor=3.0).module()
    x, _ = tokens()
    for key in (KEY, None):
        layer(jnp.asarray(x), jnp.ones((3, 5), bool), jnp.zeros((3, 5), int), num_kinds=1, key=key)
    assert used == [(name, "megablox", 3.0) for name in names]


def test_noise_is_drawn_in_training_only():
    x, _ = tokens()
    layer = Layer(noise_std=8.0, dispatcher="dropless")
    evaluated, first, again, other = (
        np.asarray(layer(x, key=key)[0]) for key in (None, KEY, KEY, jax.random.key(2))
    )
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 1e-3 and np.abs(first - evaluated).max() > 1e-3


def test_dispatchers_give_the_same_gradients_through_the_whole_layer():
    x, ids = tokens()
    valid = np.random.default_rng(0).random((3, 5)) < 0.8
    # Room for all, which is what "dropless" gives in training.
    results = [
        gradients(dataclasses.replace(OPTIONS, dispatcher=name, capacity_factor=100.0))(
            x, valid, ids
        )
        for name in ("einsum", "gather", "dropless")
    ]
    close(results[1], results[0])
    close(results[2], results[0])


# --- statistics and losses ---------------------------------------------------------------------


def test_statistics_count_drops_by_kind():
    kind = np.broadcast_to(np.arange(8) % 3, (4, 8))
    layer = Layer(capacity_factor=0.5, noise_std=0.0)
    # A constant input sends every token to the same experts: all but C of each group are dropped.
    _, report = layer(np.ones((4, 8, D), np.float32), kind=kind, num_kinds=3, key=KEY)
    slots = 4  # ceil(8 · 2 · 0.5 / 4) = 2, rounded up to 4
    assert float(report.drop_fraction()) == pytest.approx(1 - slots / 8)
    assert np.asarray(report.routed).sum(-1).tolist() == [24.0, 24.0, 16.0]
    np.testing.assert_allclose(report.load().max(), 0.5)


def test_losses_are_weighted_by_their_options():
    x, _ = tokens()
    layer = Layer(balance_weight=2.0, z_weight=3.0, importance_weight=0.5, load_weight=0.25)
    _, report = layer(x, key=KEY)
    expected = (
        2 * report.losses["balance"]
        + 3 * report.losses["z"]
        + 0.5 * report.losses["importance"]
        + 0.25 * report.losses["load"]
    )
    np.testing.assert_allclose(weighted_losses(layer.options, report), expected, rtol=1e-6)


@pytest.mark.parametrize("router", ["soft", "hash"])
def test_routers_without_gates_to_learn_have_no_losses(router):
    x, ids = tokens()
    layer = Layer(**router_options(router), balance_weight=1.0, z_weight=1.0)
    _, report = layer(x, ids=ids, key=KEY)
    assert report.losses == {} and float(weighted_losses(layer.options, report)) == 0
