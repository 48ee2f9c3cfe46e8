"""The step: loss, accumulation, meshes, frozen parts, decay, schedule."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.model.test_vlm import CONFIGS, VOCAB, random_params, rows
from vimoe_jax.config import Config
from vimoe_jax.config.train import Optim, Train
from vimoe_jax.model import loss as loss_lib
from vimoe_jax.model.blueprint import Blueprint
from vimoe_jax.parallel.mesh import make_mesh, to_mesh
from vimoe_jax.parallel.parameters import decays, is_bias
from vimoe_jax.train import optim
from vimoe_jax.train.program import Program
from vimoe_jax.train.step import make_loss_step

ROWS = [[5, 4, 3], [7, 5], [12], [6, 6], [4], [3, 3, 3, 3], [], [8, 4]]


def config(model="moe", **train):
    optim_config = train.pop("optim", Optim(learning_rate=1e-2, warmup_steps=2))
    return Config(
        model=CONFIGS[model], train=Train(steps=10, batch_size=8, **train), optim=optim_config
    )


# Plain gradient descent shows gradients as they are. Adam divides them by their own size, which
# turns the rounding of a gradient that is zero in truth (a bias on all keys) into a full step.
SGD = optax.sgd(0.1)


def run(c, mesh_sizes=None, devices=1, steps=3, tx=None):
    """Losses of a few steps and the final parameters."""
    mesh = make_mesh(mesh_sizes or {}, jax.devices()[:devices])
    blueprint = Blueprint.create(c.model, VOCAB)
    program = Program.create(c, blueprint, mesh, tx)
    state = jax.jit(program.state, out_shardings=program.shardings)(random_params(blueprint))
    step = program.step()
    batch = to_mesh(rows(ROWS), mesh)
    metrics = []
    for _ in range(steps):
        state, m = step(state, batch)
        metrics.append(jax.device_get(m))
    return jax.device_get(state), metrics


def close(a, b, atol=1e-5):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=atol, rtol=1e-5), a, b)


@pytest.mark.parametrize("vocab_chunks", [1, 3])
def test_cross_entropy_equals_the_plain_one(monkeypatch, vocab_chunks):
    rng = np.random.default_rng(0)
    hidden = jnp.asarray(rng.normal(size=(2, 5, 8)), jnp.float32)
    matrix = jnp.asarray(rng.normal(size=(11, 8)), jnp.float32)
    targets = jnp.asarray(rng.integers(0, 11, (2, 5)))
    weights = jnp.asarray(rng.integers(0, 2, (2, 5)), jnp.float32)
    monkeypatch.setattr(loss_lib, "_MAX_LOGITS", 110 // vocab_chunks)

    def plain(hidden, matrix):
        p = jax.nn.log_softmax(hidden @ matrix.T)
        return -jnp.sum(jnp.take_along_axis(p, targets[..., None], -1)[..., 0] * weights)

    def ours(hidden, matrix):
        return loss_lib.cross_entropy(hidden, matrix, targets, weights).loss

    close(ours(hidden, matrix), plain(hidden, matrix))
    close(jax.grad(ours, (0, 1))(hidden, matrix), jax.grad(plain, (0, 1))(hidden, matrix))
    sums = loss_lib.cross_entropy(hidden, matrix, targets, weights)
    right = (jnp.argmax(hidden @ matrix.T, -1) == targets) * weights
    assert float(sums.correct) == float(right.sum())
    assert float(sums.weight) == float(weights.sum())


def test_the_loss_falls():
    _, metrics = run(config(), steps=10)
    losses = [float(m.tokens.loss / m.tokens.weight) for m in metrics]
    assert losses[-1] < losses[0] - 0.3


def test_accumulation_equals_one_batch():
    """With room for all (no drops) and no noise, microbatches change nothing but sums' order."""
    model = CONFIGS["dense"]
    c = dataclasses.replace(config(), model=model)
    whole, m1 = run(c, tx=SGD)
    parts, m2 = run(
        dataclasses.replace(c, train=dataclasses.replace(c.train, accumulate=4)), tx=SGD
    )
    close(whole.params, parts.params)
    close([m.tokens for m in m1], [m.tokens for m in m2])


def test_accumulation_reports_the_mean_auxiliary_loss_and_all_counts():
    c = config()
    _, (one,) = run(c, steps=1)
    _, (four,) = run(
        dataclasses.replace(c, train=dataclasses.replace(c.train, accumulate=4)), steps=1
    )
    one_layer, four_layers = one.moe["decoder"], four.moe["decoder"]
    close(one_layer.tokens, four_layers.tokens)
    close(one_layer.routed.sum(), four_layers.routed.sum())
    # Means over groups: of the same order whatever the number of microbatches.
    ratio = four.aux_loss / one.aux_loss
    assert 0.5 < float(ratio) < 2.5


@pytest.mark.parametrize(
    ("model", "sizes"),
    [
        ("moe", {"data": 8}),
        ("moe", {"data": 2, "expert": 4}),
        ("moe", {"fsdp": 2, "expert": 2, "tensor": 2}),
        ("dropless", {"data": 2, "expert": 2, "tensor": 2}),
        ("balanced", {"data": 2, "fsdp": 2, "expert": 2}),
        ("routers", {"data": 2, "expert": 2, "tensor": 2}),
        ("dense", {"fsdp": 4, "tensor": 2}),
    ],
    ids=str,
)
def test_every_mesh_gives_the_same_numbers(model, sizes, single):
    state, metrics = run(config(model), sizes, devices=8, tx=SGD)
    expected, expected_metrics = single(model)
    close([m.tokens for m in metrics], [m.tokens for m in expected_metrics])
    close([m.grad_norm for m in metrics], [m.grad_norm for m in expected_metrics])
    close(state.params, expected.params)


@pytest.fixture(scope="module")
def single():
    results = {}

    def get(model):
        if model not in results:
            results[model] = run(config(model), tx=SGD)
        return results[model]

    return get


def test_frozen_parts_stay_and_have_no_moments():
    c = config(optim=Optim(learning_rate=1e-2, warmup_steps=0, vision_rate=0.0, connector_rate=0.1))
    state, _ = run(c, steps=2)
    blueprint = Blueprint.create(c.model, VOCAB)
    start = random_params(blueprint)
    assert all(n.startswith("vision.") for n in state.frozen)
    close(state.frozen, {n: start[n] for n in state.frozen}, atol=0)
    names = {str(path) for path, _ in jax.tree_util.tree_leaves_with_path(state.opt_state)}
    assert not any("vision." in n for n in names)
    moved = state.params["decoder.norm.scale"] - start["decoder.norm.scale"]
    assert np.abs(moved).max() > 1e-3


def test_frozen_parts_are_whole_but_over_fsdp():
    """No step changes them: gathering them each time would be for nothing."""
    c = config(optim=Optim(vision_rate=0.0))
    mesh = make_mesh({"data": 2, "fsdp": 2}, jax.devices()[:4])
    where = Program.create(c, Blueprint.create(c.model, VOCAB), mesh).shardings
    axes = [{*np.hstack([a or () for a in s.spec])} for s in where.frozen.values() if any(s.spec)]
    assert axes and all(a == {"fsdp"} for a in axes)
    assert any("data" in str(s.spec) for s in where.params.values())


def test_router_biases_move_toward_the_under_loaded_and_are_no_parameters():
    c = config("balanced")
    state, metrics = run(c, steps=3, tx=SGD)
    (name,) = (n for n in state.frozen if n.endswith("mlp.bias"))
    report = [m.moe["decoder"] for m in metrics]
    expected = np.zeros(state.frozen[name].shape, np.float32)
    for r in report:
        load = r.routed.sum(-2)
        expected += 0.01 * np.sign(load.mean(-1, keepdims=True) - load)
    np.testing.assert_allclose(state.frozen[name], expected, atol=1e-7)
    assert np.abs(expected).max() > 0.005
    assert name not in state.params
    # Microbatches are one batch: the biases move once a step.
    parts, _ = run(
        dataclasses.replace(c, train=dataclasses.replace(c.train, accumulate=2)), steps=3, tx=SGD
    )
    moved = np.abs(parts.frozen[name])
    assert moved.max() <= 0.03 + 1e-7


def test_a_frozen_part_keeps_its_router_biases():
    rates = Optim(learning_rate=1e-2, warmup_steps=0, decoder_rate=0.0)
    state, _ = run(config("balanced", optim=rates), steps=2)
    (name,) = (n for n in state.frozen if n.endswith("mlp.bias"))
    np.testing.assert_array_equal(state.frozen[name], 0)


@pytest.mark.parametrize("remat", ["dots", "full"])
def test_rematerialisation_changes_no_number(remat, single):
    c = config("moe")
    c = dataclasses.replace(c, model=dataclasses.replace(c.model, remat=remat))
    state, metrics = run(c, tx=SGD)
    expected, expected_metrics = single("moe")
    close([m.tokens for m in metrics], [m.tokens for m in expected_metrics])
    close(state.params, expected.params)


def test_rates_scale_a_parts_steps():
    def first_step(rate):
        c = config(
            optim=Optim(learning_rate=1e-2, warmup_steps=0, weight_decay=0.0, connector_rate=rate)
        )
        state, _ = run(c, steps=1)
        start = random_params(Blueprint.create(c.model, VOCAB))
        return state.params["connector.w_out"] - start["connector.w_out"]

    np.testing.assert_allclose(first_step(1.0) * 0.25, first_step(0.25), atol=1e-6)


def test_decay_is_for_matrices_only():
    axes = Blueprint.create(CONFIGS["moe everywhere"], VOCAB).axes()
    decayed = {n for n, a in axes.items() if decays(a) and not is_bias(n)}
    assert "decoder.embedding" in decayed
    assert any(n.endswith("experts.w_in") for n in decayed)
    for name in axes:
        if name.endswith(("scale", "bias", "b_in", "b_out")):
            assert name not in decayed, name


def test_schedule_warms_up_and_decays():
    s = optim.schedule(Optim(learning_rate=2.0, warmup_steps=10, final_fraction=0.1), 100)
    assert [float(s(i)) for i in (0, 5, 10)] == pytest.approx([0.0, 1.0, 2.0])
    assert float(s(100)) == pytest.approx(0.2)


def test_validation_loss_is_the_training_loss_without_noise():
    c = config("dense")
    mesh = make_mesh({}, jax.devices()[:1])
    blueprint = Blueprint.create(c.model, VOCAB)
    sums = jax.jit(make_loss_step(blueprint, mesh))(
        random_params(blueprint), to_mesh(rows(ROWS), mesh)
    )
    _, (first,) = run(c, steps=1)
    close(sums, first.tokens)
