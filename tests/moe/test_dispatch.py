"""The dispatchers agree in value and in every gradient."""

import dataclasses
import functools
import itertools
import math

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.test_util import check_grads

from vimoe_jax.moe import dispatch, exchange, routing
from vimoe_jax.moe.dispatch.einsum import EinsumDispatcher
from vimoe_jax.moe.dispatch.gather import GatherDispatcher
from vimoe_jax.moe.dispatch.moves import to_rows
from vimoe_jax.moe.dispatch.sorted_rows import SortedRows
from vimoe_jax.moe.experts import Experts
from vimoe_jax.moe.routers.expert_choice import expert_choice
from vimoe_jax.moe.routers.hash import hash_table
from vimoe_jax.moe.routers.top_k import top_k
from vimoe_jax.parallel.mesh import make_mesh
from vimoe_jax.parallel.rules import use_mesh

D, F, OUT = 5, 7, 6
NAMES = ("einsum", "gather", "dropless")
ACTIVATIONS = {"swiglu": False, "gelu": True}  # with a bias?


@functools.cache
def structure(num_experts, activation):
    """The graph of some experts, and the shapes of the weights that `inputs` draws."""
    options = dict(activation=activation, bias=ACTIVATIONS[activation], dtype=jnp.float32)
    return nnx.split(Experts(num_experts, D, F, OUT, **options, rngs=nnx.Rngs(0)))


def inputs(seed, shape, activation, sharpness=0.0, valid_fraction=1.0):
    """Tokens, gates, validity, token ids, the experts' weights, and a gradient of the output."""
    rng = np.random.default_rng(seed)
    groups, tokens, experts = shape
    logits = rng.normal(size=shape)
    logits[..., 0] += sharpness  # a large value sends everything to expert 0
    gates = jax.nn.softmax(jnp.asarray(logits, jnp.float32))

    def draw(*shape):
        return jnp.asarray(rng.normal(size=shape), jnp.float32)

    weights = jax.tree.map(lambda a: draw(*a.shape) / 3, structure(experts, activation)[1])
    valid = jnp.asarray(rng.random((groups, tokens)) < valid_fraction)
    ids = jnp.asarray(rng.integers(0, 1 if sharpness else 50, (groups, tokens)))
    return draw(groups, tokens, D), gates, valid, ids, weights, draw(groups, tokens, OUT)


def assign(router, gates, valid, ids, k, capacity):
    """One router's assignment; its weights are differentiable in the gates."""
    if router == "top_k":
        return top_k(gates, k, capacity, batch_priority=True, valid=valid)
    if router == "expert_choice":
        return expert_choice(gates, capacity, valid=valid)
    expert = jnp.asarray(hash_table(50, gates.shape[-1], k))[ids]
    weight = jnp.take_along_axis(gates, expert, -1)
    return routing.assign(expert, weight, gates.shape[-1], capacity, valid=valid)


def through(name, assignment, experts, x, *, backend="portable", **how):
    """As the layer does it."""
    return dispatch.make(name, assignment, backend=backend, **how).run(experts, x)


def one_by_one(a, experts, x):
    """Every token through every expert, and of that what was chosen and kept: no slots at all."""
    groups, tokens, _ = x.shape
    each = jnp.broadcast_to(x[:, None], (groups, experts.w_in.shape[0], tokens, D))
    weight = jnp.where(a.slot < a.capacity, a.weight, 0)
    one_hot = jax.nn.one_hot(a.expert, experts.w_in.shape[0])
    return jnp.einsum("gmk,gmke,gemo->gmo", weight, one_hot, experts(each))


@functools.cache
def compiled(router, k, capacity, activation, num_experts):
    """By name: the output, and with the gradients of <output, target> the same output again."""
    graph, _ = structure(num_experts, activation)

    def output(name, x, gates, weights, valid, ids):
        a = assign(router, gates, valid, ids, k, capacity)
        experts = nnx.merge(graph, weights)
        if name == "one by one":
            return one_by_one(a, experts, x)
        return through(name, a, experts, x)

    def loss(x, gates, weights, name, valid, ids, target):
        y = output(name, x, gates, weights, valid, ids)
        return jnp.sum(y * target), y

    def f(x, gates, valid, ids, weights, target):
        gradient = jax.grad(loss, argnums=(0, 1, 2), has_aux=True)
        return {
            name: (
                output(name, x, gates, weights, valid, ids),
                gradient(x, gates, weights, name, valid, ids, target),
            )
            for name in ("one by one", *NAMES)
        }

    return jax.jit(f)


def close(a, b, tolerance=1e-5):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=tolerance, rtol=tolerance), a, b
    )


@pytest.mark.parametrize(
    ("router", "shape", "k", "capacity", "activation"),
    [
        ("top_k", (2, 9, 4), 2, 3, "swiglu"),
        ("top_k", (3, 7, 5), 5, 7, "gelu"),  # K = E, room for all
        ("top_k", (1, 13, 3), 1, 1, "swiglu"),
        ("top_k", (2, 37, 3), 2, 37, "gelu"),  # several row tiles an expert
        ("expert_choice", (2, 9, 4), 4, 3, "gelu"),
        ("hash", (2, 6, 4), 3, 1, "swiglu"),
    ],
    ids=str,
)
@hypothesis.given(
    seed=st.integers(0, 10_000),
    sharpness=st.sampled_from([0.0, 30.0]),
    valid_fraction=st.sampled_from([0.0, 0.7, 1.0]),
)
@hypothesis.settings(deadline=None, max_examples=15)
def test_dispatchers_agree(router, shape, k, capacity, activation, seed, sharpness, valid_fraction):
    args = inputs(seed, shape, activation, sharpness, valid_fraction)
    results = compiled(router, k, capacity, activation, shape[2])(*args)
    undifferentiated, (gradients, y) = results.pop("one by one")
    for value, (their_gradients, their_y) in results.values():
        close(value, undifferentiated)
        close(their_y, y)
        close(their_gradients, gradients)
    padding = ~np.asarray(args[2])
    np.testing.assert_array_equal(np.asarray(y)[padding], 0)
    for their_gradients, _ in (r[1] for r in results.values()):
        np.testing.assert_array_equal(np.asarray(their_gradients[0])[padding], 0)


def test_experts_alone_and_all_at_once_are_the_truth():
    """The reference of the test above, in NumPy's float64."""
    x, gates, valid, ids, weights, _ = inputs(3, (2, 9, 4), "swiglu", valid_fraction=0.8)
    a = jax.tree.map(np.asarray, assign("top_k", gates, valid, ids, 2, 3))
    y = np.zeros((*x.shape[:2], OUT))
    w_in, w_out = (np.asarray(weights[n][...], np.float64) for n in ("w_in", "w_out"))
    for g, m, j in np.ndindex(*a.slot.shape):
        if a.slot[g, m, j] < 3:
            e = a.expert[g, m, j]
            gate, up = (np.asarray(x[g, m], np.float64) @ w_in[e, :, i] for i in (0, 1))
            y[g, m] += float(a.weight[g, m, j]) * (gate / (1 + np.exp(-gate)) * up) @ w_out[e]
    results = compiled("top_k", 2, 3, "swiglu", 4)(x, gates, valid, ids, weights, np.zeros_like(y))
    np.testing.assert_allclose(results["one by one"][0], y, atol=1e-5)


@hypothesis.given(
    seed=st.integers(0, 10_000),
    sharpness=st.sampled_from([0.0, 30.0]),
    valid_fraction=st.sampled_from([0.0, 0.7, 1.0]),
)
@hypothesis.settings(deadline=None, max_examples=20)
def test_every_choice_sits_in_its_slot(seed, sharpness, valid_fraction):
    shape, capacity = (2, 9, 4), 3
    x, gates, valid, ids, _, _ = inputs(seed, shape, "swiglu", sharpness, valid_fraction)
    a, buffers, rows, starts = _laid_out(x, gates, valid, ids)
    a, x = jax.tree.map(np.asarray, a), np.asarray(x)
    expected = np.zeros((2, 4, capacity, D), np.float32)
    order = [[] for _ in range(4)]  # of the dropless rows: by expert, then group, then slot
    for g in range(2):
        for e in range(4):
            for m, j in sorted(np.argwhere(a.expert[g] == e), key=lambda at: a.slot[g][tuple(at)]):
                if a.slot[g, m, j] < capacity:
                    expected[g, e, a.slot[g, m, j]] = x[g, m]
                    order[e].append(x[g, m])
    for got in buffers:
        np.testing.assert_array_equal(got, expected)
    want = np.zeros_like(rows)
    for e in range(4):
        want[starts[e] : starts[e] + len(order[e])] = np.reshape(order[e], (-1, D))
    np.testing.assert_array_equal(rows, want)


@jax.jit
def _laid_out(x, gates, valid, ids):
    a = assign("top_k", gates, valid, ids, 2, 3)
    buffers = [d.create(a).to_experts(x) for d in (EinsumDispatcher, GatherDispatcher)]
    d = SortedRows.create(a, "portable")
    rows = to_rows(x.reshape(1, -1, D), d.row_of_choice, d.choice_of_row)[0]
    return a, buffers, rows, d.segments.starts


@pytest.mark.parametrize("kind", [EinsumDispatcher, GatherDispatcher])
def test_gradients_against_finite_differences(kind):
    x, gates, _, _, _, _ = inputs(1, (2, 6, 3), "swiglu")
    valid = jnp.arange(6) < jnp.array([[5], [6]])
    a = top_k(gates, 2, 2, valid=valid)

    @jax.jit
    def f(x, weight, out_weight):
        d = kind.create(dataclasses.replace(a, weight=weight))
        return d.from_experts(jnp.tanh(d.to_experts(x)) * out_weight[None, :, None])

    check_grads(f, (x, a.weight, jnp.ones((3, D))), order=1, modes=["rev"], atol=1e-2, rtol=1e-2)


def on_a_mesh(name, sizes, args, activation="swiglu", capacity=3, **how):
    """The gradients and the output that `compiled` gives, of devices that share the work."""
    x, gates, valid, ids, weights, target = args
    graph, _ = structure(gates.shape[-1], activation)
    mesh = make_mesh(sizes, jax.devices()[: math.prod(sizes.values())])

    def loss(x, gates, weights):
        with use_mesh(mesh):
            a = assign("top_k", gates, valid, ids, 2, capacity)
            experts = nnx.merge(graph, weights)
            y = through(name, a, experts, x, **how)
        return jnp.sum(y * target), y

    return jax.jit(jax.grad(loss, argnums=(0, 1, 2), has_aux=True))(x, gates, weights)


@pytest.mark.parametrize(
    ("name", "sizes", "groups", "sharpness", "factor"),
    [
        ("gather", {"data": 2, "expert": 2}, 4, 0.0, 2.0),
        ("dropless", {"data": 2, "expert": 2}, 4, 0.0, 0.0),  # at once, whatever comes
        ("dropless", {"expert": 4}, 4, 30.0, 0.5),  # all to one device, in rounds
        ("dropless", {"fsdp": 2, "expert": 2, "tensor": 2}, 3, 0.0, 0.25),  # a device without group
        ("dropless", {"fsdp": 2, "tensor": 2}, 3, 0.0, 2.0),  # no exchange
    ],
    ids=str,
)
@pytest.mark.parametrize("activation", ["swiglu", "gelu"])
def test_on_a_mesh_the_same(name, sizes, groups, sharpness, factor, activation):
    args = inputs(7, (groups, 20, 4), activation, sharpness, valid_fraction=0.8)
    expected = compiled("top_k", 2, 20, activation, 4)(*args)["einsum"][1]
    got = on_a_mesh(name, sizes, args, activation, capacity=20, exchange_factor=factor)
    close(got, expected)


def test_drops_are_honoured_before_an_exchange():
    args = inputs(3, (4, 9, 4), "swiglu", sharpness=1.0, valid_fraction=0.8)
    expected = compiled("top_k", 2, 3, "swiglu", 4)(*args)["einsum"][1]
    close(on_a_mesh("dropless", {"data": 2, "expert": 2}, args), expected)


@pytest.mark.parametrize(("factor", "parts"), [(0.5, 1), (2.0, 1), (0.5, 3), (2.0, 7)])
def test_pieces_of_their_true_length_give_the_same(monkeypatch, factor, parts):
    """With `ragged_all_to_all` by its definition, which XLA has not on CPU."""

    def ragged_all_to_all(rows, out, starts, sizes, places, received, *, axis_name):
        every = functools.partial(jax.lax.all_gather, axis_name=axis_name)
        me = jax.lax.axis_index(axis_name)
        rows, starts, sizes, places = every(rows), every(starts), every(sizes), every(places)
        index, devices = jnp.arange(out.shape[0]), rows.shape[0]
        for source, part in itertools.product(range(devices), range(parts)):
            update = me * parts + part
            size, place = sizes[source, update], places[source, update]
            agreed = size == received[source * parts + part]  # both sides must
            moved = jnp.roll(rows[source], place - starts[source, update], axis=0)
            here = (index >= place) & (index < place + jnp.where(agreed, size, -1))
            out = jnp.where(here[:, None], moved, out)
        return out

    monkeypatch.setattr(jax.lax, "ragged_all_to_all", ragged_all_to_all)
    monkeypatch.setattr(exchange, "parts", lambda mesh: parts)
    args = inputs(5, (4, 20, 4), "swiglu", sharpness=2.0, valid_fraction=0.8)
    expected = compiled("top_k", 2, 20, "swiglu", 4)(*args)["einsum"][1]
    got = on_a_mesh("dropless", {"expert": 4}, args, capacity=20, exchange_factor=factor)
    close(got, expected)


@pytest.mark.parametrize(
    ("choices", "devices", "factor", "slots"),
    [
        (64, 4, 1.0, 16),
        (64, 4, 2.0, 32),
        (64, 4, 0.0, 64),
        (64, 4, 9.0, 64),
        (65, 4, 1.0, 24),
        (3, 4, 1.0, 3),
    ],
)
def test_slots_of_a_round(choices, devices, factor, slots):
    assert exchange.slots(choices, devices, factor) == slots


def test_few_tokens_go_their_own_way_unless_differentiated(monkeypatch):
    """`Experts.few_rows` gets each token's weight for each expert: of choices that were kept."""
    shape, k, capacity = (2, 9, 4), 2, 3
    x, gates, valid, ids, weights, target = inputs(4, shape, "swiglu", valid_fraction=0.7)
    graph, _ = structure(4, "swiglu")
    value, (gradients, y) = compiled("top_k", k, capacity, "swiglu", 4)(
        x, gates, valid, ids, weights, target
    )["einsum"]
    calls = []

    def few_rows(self, x, weight):
        calls.append(weight.shape)
        out = self(jnp.broadcast_to(x, (1, 4, *x.shape)))[0]
        return jax.lax.stop_gradient(jnp.einsum("te,eto->to", weight, out))

    monkeypatch.setattr(Experts, "few_rows", few_rows)

    def loss(x, gates, weights):
        a = assign("top_k", gates, valid, ids, k, capacity)
        y = through("dropless", a, nnx.merge(graph, weights), x)
        return jnp.sum(y * target), y

    _, got = jax.jit(loss)(x, gates, weights)
    assert calls == [(18, 4)]
    close(got, value)
    close(
        jax.jit(jax.grad(loss, argnums=(0, 1, 2), has_aux=True))(x, gates, weights), (gradients, y)
    )


def test_on_hopper_gather_runs_as_dropless(monkeypatch):
    shape, k, capacity = (2, 9, 4), 2, 3
    args = inputs(5, shape, "swiglu", valid_fraction=0.7)
    expected = compiled("top_k", k, capacity, "swiglu", 4)(*args)["einsum"][0]
    x, gates, valid, ids, weights, _ = args
    graph, _ = structure(4, "swiglu")
    monkeypatch.setattr(dispatch, "GatherDispatcher", None)

    def f(x, gates, weights):
        a = assign("top_k", gates, valid, ids, k, capacity)
        return through("gather", a, nnx.merge(graph, weights), x, backend="hopper")

    close(jax.jit(f)(x, gates, weights), expected)


@pytest.mark.parametrize("sizes", [{"data": 2}, {"fsdp": 2, "tensor": 2}], ids=str)
def test_on_hopper_meshes_with_whole_experts_too(monkeypatch, sizes):
    args = inputs(6, (3, 20, 4), "swiglu", sharpness=1.0, valid_fraction=0.8)
    expected = compiled("top_k", 2, 5, "swiglu", 4)(*args)["einsum"][1]
    monkeypatch.setattr(dispatch, "GatherDispatcher", None)
    close(on_a_mesh("gather", sizes, args, capacity=5, backend="hopper"), expected)


def test_what_has_a_capacity_is_exchanged_in_one_round(monkeypatch):
    args = inputs(6, (4, 20, 4), "swiglu", sharpness=30.0, valid_fraction=0.8)
    expected = compiled("top_k", 2, 5, "swiglu", 4)(*args)["einsum"][1]
    monkeypatch.setattr(exchange, "sum_over_rounds", None)
    sizes = {"data": 2, "expert": 2}
    close(on_a_mesh("gather", sizes, args, capacity=5, backend="hopper"), expected)


# --- experts -----------------------------------------------------------------------------------


@pytest.mark.parametrize("activation", ["swiglu", "gelu_tanh", "gelu"])
def test_experts_equal_one_mlp_each(activation):
    experts = Experts(
        3, D, F, 4, activation=activation, bias=True, dtype=jnp.float32, rngs=nnx.Rngs(0)
    )
    experts.b_in[...] = jax.random.normal(jax.random.key(1), experts.b_in.shape)
    experts.b_out[...] = jax.random.normal(jax.random.key(2), experts.b_out.shape)
    x = jax.random.normal(jax.random.key(3), (2, 3, 6, D))
    y = jax.jit(lambda x: experts(x))(x)
    act = {
        "swiglu": lambda a, b: jax.nn.silu(a) * b,
        "gelu_tanh": lambda a: jax.nn.gelu(a, approximate=True),
        "gelu": lambda a: jax.nn.gelu(a, approximate=False),
    }[activation]

    @jax.jit
    def one(x, w_in, w_out, b_in, b_out):
        return act(*(x @ w_in[:, i] + b_in[i] for i in range(w_in.shape[1]))) @ w_out + b_out

    for e in range(3):
        weights = (getattr(experts, n)[e] for n in ("w_in", "w_out", "b_in", "b_out"))
        np.testing.assert_allclose(y[:, e], one(x[:, e], *weights), atol=1e-5)


def test_only_plain_swiglu_has_a_way_for_few_tokens():
    for activation, bias in (("swiglu", True), ("gelu", False), ("swiglu", False)):
        experts = Experts(
            2, D, F, OUT, activation=activation, bias=bias, dtype=jnp.float32, rngs=nnx.Rngs(0)
        )
        # And none on CPU at all.
        assert experts.few_rows(jnp.ones((3, D)), jnp.ones((3, 2))) is None
