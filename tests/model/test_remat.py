"""Rematerialisation: every policy gives the same gradients; what is exchanged again."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from tests.model.test_vlm import CONFIGS, VOCAB, random_params, rows
from vimoe_jax.model.blueprint import Blueprint
from vimoe_jax.parallel.mesh import make_mesh, to_mesh
from vimoe_jax.parallel.rules import use_mesh
from vimoe_jax.plan.collectives import collectives

ROWS = [[5, 4, 3], [7, 5], [12], [6, 6], [4], [3, 3, 3, 3], [8], [8, 4]]
POLICIES = ["dots", "dots_no_batch", "dispatch", "full", "offload"]


def small(model, remat):
    """Two layers of one kind in the decoder: what a scan keeps is stacked."""
    c = CONFIGS[model]
    moe = dataclasses.replace(c.decoder.moe, placement="all")
    decoder = dataclasses.replace(c.decoder, depth=2, moe=moe)
    vision = dataclasses.replace(c.vision, depth=1)
    return dataclasses.replace(c, decoder=decoder, vision=vision, remat=remat)


@functools.cache
def compiled(model, remat, devices=1):
    """The gradient of a loss over rows, on a mesh of experts if there are several devices."""
    blueprint = Blueprint.create(small(model, remat), VOCAB)
    sizes = {"expert": devices} if devices > 1 else {}
    mesh = make_mesh(sizes, jax.devices()[:devices])
    params = jax.device_put(random_params(blueprint), blueprint.shardings(mesh))

    def loss(params, batch):
        with use_mesh(mesh):
            out = blueprint.build(params)(batch, key=jax.random.key(0))
            return (out.hidden**2).sum() + out.aux_loss

    batch = to_mesh(rows(ROWS), mesh)
    gradient = jax.jit(jax.grad(loss)).lower(params, batch).compile()
    return gradient, params, batch, mesh


def grads(*which):
    gradient, params, batch, _ = compiled(*which)
    return jax.device_get(gradient(params, batch))


def exchanges(*which):
    gradient, *_, mesh = compiled(*which)
    return [c for c in collectives(gradient.as_text(), mesh) if c.kind.endswith("all-to-all")]


@pytest.mark.parametrize("remat", POLICIES)
def test_every_policy_gives_the_same_gradients(remat):
    expected, found = grads("moe", "none"), grads("moe", remat)
    largest = max(np.abs(g).max() for g in expected.values())
    for name, g in expected.items():
        # A bias on all keys has the gradient 0, and shows what rounding makes of it.
        scale = max(np.abs(g).max(), 1e-3 * largest)
        np.testing.assert_allclose(found[name] / scale, g / scale, atol=1e-4, err_msg=name)


@pytest.mark.parametrize("model", ["moe", "dropless"])
def test_what_dispatch_moved_is_not_moved_again(model):
    plain = len(exchanges(model, "none", 4))
    assert plain > 0
    for remat in ("dots", "dots_no_batch", "dispatch"):
        assert len(exchanges(model, remat, 4)) <= plain
    assert len(exchanges(model, "full", 4)) > plain  # or else this would show nothing
