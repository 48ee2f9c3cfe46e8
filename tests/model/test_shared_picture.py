"""Four questions in a row that share their picture are worth four rows: loss, logits, gradients."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from tests.model.test_vlm import MOE, PATCHES, VOCAB, random_params, rows, small, text_of
from vimoe_jax.model.blueprint import Blueprint

# Room for every token, and nothing that depends on which tokens come together.
ROOM = dataclasses.replace(
    MOE, capacity_factor=float(MOE.num_experts), noise_std=0.0, importance_weight=0.0,
    load_weight=0.0,
)  # fmt: skip


def shallow(moe=None):
    """One layer of tower and two of decoder; the tower's and the second with experts, if any."""
    c = small()
    vision, decoder = (dataclasses.replace(p, depth=d) for p, d in ((c.vision, 1), (c.decoder, 2)))
    if moe:
        vision = dataclasses.replace(vision, moe=dataclasses.replace(moe, placement="all"))
        decoder = dataclasses.replace(decoder, moe=dataclasses.replace(moe, placement=(1,)))
    return dataclasses.replace(c, vision=vision, decoder=decoder, dtype="float32")


MODELS = {
    "dense": shallow(),
    "gather": shallow(ROOM),
    "dropless": shallow(dataclasses.replace(ROOM, dispatcher="dropless")),
    "expert bias": shallow(dataclasses.replace(ROOM, bias_rate=0.01)),
    "hash": shallow(dataclasses.replace(ROOM, router="hash")),
}
LENGTHS = [[7, 3, 5, 4], [2, 9, 3, 6]]  # tokens of each row's questions
TOTAL = 21  # both rows end in padding


@functools.cache
def packed():
    """Two rows of four questions, and six rows without any, so that shapes are those below."""
    return rows(LENGTHS + [[]] * 6, total=TOTAL)


@functools.cache
def separate():
    """The same eight questions in rows of their own."""
    together, alone = packed(), rows([[n] for lengths in LENGTHS for n in lengths], total=TOTAL)
    k = 0
    for i, lengths in enumerate(LENGTHS):
        start = 0
        for n in lengths:
            alone.pictures[k] = together.pictures[i]
            for name in ("tokens", "targets", "weights"):
                mine, theirs = (getattr(text_of(b), name) for b in (alone, together))
                mine[k, :n] = theirs[i, start : start + n]
            start, k = start + n, k + 1
    return alone


@functools.cache
def step(name):
    """The compiled (params, batch) -> gradients, loss, logits as in training; and the params."""
    blueprint = Blueprint.create(MODELS[name], VOCAB)
    params, rng = random_params(blueprint), np.random.default_rng(4)
    for n in blueprint.buffers():
        if n.endswith("bias"):  # of routers: far enough from 0 to change choices
            params[n] = rng.normal(0, 0.2, params[n].shape).astype(np.float32)
    buffers = {n: params.pop(n) for n in blueprint.buffers()}

    def loss(params, buffers, batch):
        model = blueprint.build({**params, **buffers})
        sums, out = model.loss(batch, key=jax.random.key(0))
        return sums.loss, (sums, model.logits(out.hidden))

    return jax.jit(jax.grad(loss, has_aux=True)), params, buffers


@functools.cache
def results(name):
    """(gradients, (loss, logits)) of the packed rows and of the separate ones."""
    run, params, buffers = step(name)
    return [jax.device_get(run(params, buffers, batch)) for batch in (packed(), separate())]


every = pytest.mark.parametrize("name", MODELS)


@every
def test_the_loss_is_the_sum_of_the_separate_losses(name):
    (_, (together, _)), (_, (apart, _)) = results(name)
    assert together.weight == apart.weight == 2 * 8
    assert together.correct == apart.correct
    np.testing.assert_allclose(together.loss, apart.loss, rtol=1e-5)


@every
def test_logits_of_every_answer_place_agree(name):
    (_, (_, together)), (_, (_, apart)) = results(name)
    a = together[text_of(packed()).weights > 0]
    b = apart[text_of(separate()).weights > 0]
    assert a.shape == b.shape == (16, VOCAB)
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


@every
def test_the_gradient_is_the_sum_of_the_separate_gradients(name):
    (together, _), (apart, _) = results(name)
    assert together.keys() == apart.keys()
    for n in together:
        scale = max(1.0, np.abs(apart[n]).max())
        np.testing.assert_allclose(together[n], apart[n], atol=1e-5 * scale, err_msg=n)
    for part in ("vision.", "connector.", "decoder."):
        assert max(np.abs(g).max() for n, g in together.items() if n.startswith(part)) > 1e-3


@pytest.mark.parametrize("name", ["dense", "gather"])
def test_the_comparison_would_notice(name):
    """Questions that see each other, or go on counting positions, give another loss."""
    run, params, buffers = step(name)
    right = results(name)[0][1][0].loss
    one = packed()._replace(segments=np.minimum(packed().segments, 1))
    places = np.arange(PATCHES + TOTAL, dtype=np.int32)
    counted = packed()._replace(positions=np.tile(places, (8, 1)))
    for wrong in (one, counted):
        assert abs(run(params, buffers, wrong)[1][0].loss / right - 1) > 1e-4


def test_the_bias_changes_choices():
    """Otherwise "expert bias" would be the case without."""
    run, params, buffers = step("expert bias")
    without = {n: 0 * v for n, v in buffers.items()}
    other = run(params, without, packed())[1][0].loss
    assert other != results("expert bias")[0][1][0].loss
