"""Distillation: the loss against its formula, its gradient, which states it compares."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.model.test_vlm import CONFIGS, VOCAB, random_params, rows, text_of
from vimoe_jax.base.errors import UserError
from vimoe_jax.config import Config
from vimoe_jax.config.train import Distill, Optim, Train
from vimoe_jax.model.blueprint import Blueprint
from vimoe_jax.parallel.mesh import make_mesh
from vimoe_jax.run import state as state_lib
from vimoe_jax.train import distill
from vimoe_jax.train.step import make_train_step

BATCH = jax.device_put(rows([[5, 4, 3], [7], []]))


@functools.cache
def made(name):
    blueprint = Blueprint.create(CONFIGS[name], VOCAB)
    return blueprint, jax.device_put(random_params(blueprint, seed=len(name)))


@functools.cache
def states(name):
    blueprint, params = made(name)
    return jax.jit(lambda p, b: distill.forward(blueprint.build(p), b))(params, BATCH)


def test_forward_is_the_model_itself():
    blueprint, params = made("moe everywhere")
    out, kept = states("moe everywhere")
    plain = jax.jit(lambda p, b: blueprint.build(p)(b))(params, BATCH)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), out, plain)
    assert [x.shape for x in kept.vision] == [(3, 4, 24)] * 2
    assert [x.shape for x in kept.decoder] == [(3, 16, 32)] * 5  # X^0 and four layers
    # The last layer's output, normed, is what the model gives.
    model = blueprint.build(params)
    last = model.decoder.norm(kept.decoder[-1])
    np.testing.assert_allclose(last[:2, 4:], out.hidden[:2], atol=1e-5)  # the third is padding
    np.testing.assert_allclose(
        kept.decoder[0][:2, 4:], model.decoder.embed(text_of(BATCH).tokens)[:2], atol=1e-6
    )


def by_formula(ours, parents, batch):
    """In float64 numpy, token by token."""
    used = text_of(batch).segments > 0
    valid = np.concatenate([np.repeat(used.any(1)[:, None], 4, 1), used], 1)
    total = 0.0
    for part, mask in (("vision", valid[:, :4]), ("decoder", valid)):
        for a, b in zip(getattr(ours, part), getattr(parents, part), strict=True):
            total += np.square(np.asarray(a, np.float64) - b)[mask].mean()

    def softmax(s):
        logits = np.asarray(s.hidden, np.float64) @ np.asarray(s.matrix, np.float64).T
        e = np.exp(logits - logits.max(-1, keepdims=True))
        return e / e.sum(-1, keepdims=True)

    answers = text_of(batch).weights > 0
    p, q = softmax(ours)[answers], softmax(parents)[answers]
    kl = (p * np.log(p / q)).sum(-1) + (q * np.log(q / p)).sum(-1)
    return total, 0.5 * kl.mean()


@pytest.mark.parametrize("child", ["moe", "moe everywhere"])
def test_distance_equals_the_formula(child):
    ours, parents = states(child)[1], states("dense")[1]
    found = distill.distance(ours, parents, BATCH)
    expected = by_formula(ours, parents, BATCH)
    np.testing.assert_allclose((found.states, found.logits), expected, rtol=1e-4)
    assert float(found.total()) == pytest.approx(sum(expected), rel=1e-4)


def test_a_model_is_at_no_distance_from_itself():
    kept = states("dense")[1]
    assert float(distill.distance(kept, kept, BATCH).total()) == 0


def test_gradients_reach_the_child_only_and_are_right():
    batch = BATCH
    child, params = made("dense")
    parent, parent_params = child, random_params(child, seed=7)

    @jax.jit
    def loss(params, parent_params):
        _, ours = distill.forward(child.build(params), batch)
        theirs = distill.parent_states(parent, parent_params, batch)
        return distill.distance(ours, theirs, batch).total()

    mine, theirs = jax.jit(jax.grad(loss, (0, 1)))(params, parent_params)
    assert not any(np.any(g) for g in jax.tree.leaves(theirs))
    # Along a random direction, against a central difference.
    rng = np.random.default_rng(0)
    direction = {n: rng.normal(size=p.shape).astype(np.float32) for n, p in params.items()}
    size = 1e-3
    ahead, behind = (
        float(loss({n: p + s * size * direction[n] for n, p in params.items()}, parent_params))
        for s in (1, -1)
    )
    slope = sum(float(jnp.vdot(mine[n], direction[n])) for n in params)
    assert (ahead - behind) / (2 * size) == pytest.approx(slope, rel=2e-2)
    # The connector is taught through X^0.
    assert np.any(mine["connector.w_in"])


@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_step_learns_from_a_parent(accumulate):
    train = Train(steps=4, batch_size=4, accumulate=accumulate)
    alone = Config(model=CONFIGS["moe"], train=train, optim=Optim(learning_rate=1e-2))
    options = Distill("DENSE", 2.0)
    c = dataclasses.replace(alone, train=dataclasses.replace(train, distill=options))
    child, params = made("moe")
    parent, teacher = made("dense")
    tx, mesh = optax.sgd(0.0), make_mesh({}, jax.devices()[:1])
    state = state_lib.create(params, tx, set(params))
    batch = jax.tree.map(lambda x: np.concatenate([x, x[:1]]), BATCH)
    step = jax.jit(make_train_step(c, child, tx, mesh, parent))
    plain = jax.jit(make_train_step(alone, child, tx, mesh))
    with pytest.raises(UserError, match=r"config\.train\.distill\.parent"):
        make_train_step(c, child, tx, mesh)
    taught, alone = step(state, batch, teacher)[1], plain(state, batch)[1]
    assert float(taught.tokens.loss) == pytest.approx(float(alone.tokens.loss), rel=1e-5)
    assert float(taught.aux_loss) > float(alone.aux_loss) + 0.1
    assert float(taught.grad_norm) != pytest.approx(float(alone.grad_norm), rel=1e-2)
