"""Importance: scores against plain per-sample gradients, ranks dealt as MoEBERT deals them."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.model.test_vlm import VOCAB, random_params, rows, small, text_of
from vimoe_jax.base.errors import UserError
from vimoe_jax.model.blueprint import Blueprint
from vimoe_jax.moe.options import MoEOptions
from vimoe_jax.parallel.mesh import make_mesh
from vimoe_jax.upcycle import importance
from vimoe_jax.upcycle.methods import Upcycling, layout

LENGTHS = [[5, 4], [7], [12], []]
PATHS = ("connector", "decoder.blocks.segments.0.0.mlp", "vision.blocks.segments.0.0.mlp")


def plain(blueprint, params, batch):
    """Row by row in numpy, from the gradients of every weight."""

    def loss(params, row):
        model, text = blueprint.build(params), text_of(row)
        logp = jax.nn.log_softmax(model.logits(model(row).hidden))
        right = jnp.take_along_axis(logp, text.targets[..., None], -1)[..., 0]
        return -(right * text.weights).sum() / jnp.maximum(text.weights.sum(), 1)

    gradient = jax.jit(jax.grad(loss))
    total = dict.fromkeys(PATHS, 0.0)
    for i in range(len(LENGTHS)):
        g = gradient(params, batch.rows(i, i + 1))
        for path in PATHS:
            inner = (params[f"{path}.w_in"] * np.asarray(g[f"{path}.w_in"])).sum((-3, -2))
            outer = (params[f"{path}.w_out"] * np.asarray(g[f"{path}.w_out"])).sum(-1)
            total[path] = total[path] + np.abs(inner + outer)
    return total


@pytest.mark.parametrize("devices", [1, 8])
def test_scores_equal_plain_gradients(devices):
    blueprint = Blueprint.create(small(), VOCAB)
    params, batch = random_params(blueprint), rows(LENGTHS)
    sizes = {"data": 2, "fsdp": 2, "tensor": 2} if devices == 8 else {}
    mesh = make_mesh(sizes, jax.devices()[:devices])
    placed = jax.device_put(params, blueprint.shardings(mesh))
    halves = [batch.rows(i, i + 2) for i in (0, 2)]
    batches = [batch] if devices == 8 else halves
    found = importance.scores(blueprint, placed, PATHS, batches, mesh, 100)
    for path, expected in plain(blueprint, params, batch).items():
        assert found[path].shape == expected.shape
        np.testing.assert_allclose(found[path], expected, rtol=2e-4, atol=1e-7)


def test_no_more_samples_than_asked():
    blueprint = Blueprint.create(small(), VOCAB)
    params, mesh = jax.device_put(random_params(blueprint)), make_mesh({}, jax.devices()[:1])
    batch = rows(LENGTHS)
    batches = [batch] * 5
    few = importance.scores(blueprint, params, PATHS[:1], batches, mesh, 3)
    first = batch.rows(0, 3)
    same = importance.scores(blueprint, params, PATHS[:1], [first], mesh, 100)
    np.testing.assert_allclose(few["connector"], same["connector"], rtol=1e-5)


def ranked(scores, how=None, **options):
    how = how or Upcycling("importance", shared_units=2)
    options = MoEOptions(**{"num_experts": 3, "mlp_dim": 5, **options})
    return layout(how, options, len(scores), np.random.default_rng(0), scores)


SCORES = np.array([0.1, 9, 3, 7, 0.5, 8, 2, 6, 0.2, 5, 4, 1])  # ranks: 1 5 3 7 9 10 2 6 11 4 8 0


def test_best_units_are_everyones_and_the_rest_are_dealt_in_turn():
    made = ranked(SCORES)
    np.testing.assert_array_equal(
        made.experts.source, [[1, 5, 3, 10, 11], [1, 5, 7, 2, 4], [1, 5, 9, 6, 8]]
    )
    assert (made.experts.scale == 1).all() and not made.experts.fresh.any()


def test_shared_experts_get_the_best():
    made = ranked(SCORES, Upcycling("importance"), num_experts=4, mlp_dim=2, shared_experts=2)
    np.testing.assert_array_equal(made.shared.source, [[1, 5, 3, 7]])
    np.testing.assert_array_equal(made.experts.source, [[9, 11], [10, 4], [2, 8], [6, 0]])


def test_experts_of_full_width_are_copies():
    made = ranked(SCORES, Upcycling("importance"), mlp_dim=12)
    assert (np.sort(made.experts.source, 1) == np.arange(12)).all()


def test_two_thirds_are_shared_unless_told():
    made = ranked(np.arange(24.0), Upcycling("importance"), mlp_dim=6)
    common = set.intersection(*(set(row) for row in made.experts.source.tolist()))
    assert common == {23, 22, 21, 20}


@pytest.mark.parametrize(
    ("how", "options", "message"),
    [
        (Upcycling("importance", shared_units=6), {}, "--shared_units: 6 is more than"),
        (Upcycling("importance", shared_units=0), {}, "--shared_units: 3 experts"),
        (Upcycling("importance"), {"mlp_dim": 13}, "mlp_dim: "),
        (Upcycling("importance"), {"shared_experts": 2}, "shared_experts: 2"),
    ],
)
def test_what_cannot_be_dealt_is_refused(how, options, message):
    with pytest.raises(UserError, match=message):
        ranked(SCORES, how, **options)


def test_ties_keep_their_order():
    assert dataclasses.asdict(ranked(np.ones(12)).experts)["source"][0].tolist()[:2] == [0, 1]
