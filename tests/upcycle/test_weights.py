"""Upcycled weights: which settings keep the whole model's function, what the others draw."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.model.test_vlm import PATCHES, VOCAB, random_params, rows, small
from vimoe_jax.model.blueprint import Blueprint
from vimoe_jax.moe.options import MoEOptions
from vimoe_jax.parallel.mesh import make_mesh, to_mesh
from vimoe_jax.upcycle import drift, weights
from vimoe_jax.upcycle.convert import plan
from vimoe_jax.upcycle.methods import Upcycling
from vimoe_jax.upcycle.migration import Migration, check

ROWS = [[5, 4, 3], [7, 5], [12], [6, 6], [4], [3, 3, 3, 3], [], [8, 4]]
PARTS = ("vision", "connector", "decoder")
MOE = MoEOptions(num_experts=4, group_size=16)


@functools.cache
def dense():
    blueprint = Blueprint.create(small(), VOCAB)
    return blueprint, random_params(blueprint)


def model(**parts):
    return small(**{part: {"moe": options} for part, options in parts.items()})


def on(sizes=None, devices=1):
    return make_mesh(sizes or {}, jax.devices()[:devices])


@functools.cache
def dense_hidden():
    blueprint, _ = dense()
    return np.asarray(drift.hidden(blueprint, placed(on()), to_mesh(rows(ROWS), on()), on())[0])


def placed(mesh):
    blueprint, params = dense()
    return jax.device_put(params, blueprint.shardings(mesh))


def upcycle(new, how, mesh=None, batches=None, seed=0):
    mesh = mesh or on()
    blueprint, _ = dense()
    check(blueprint.config, new, "SOURCE")
    migration = Migration(blueprint, Blueprint.create(new, VOCAB))
    params = placed(mesh)
    layouts = plan(migration, how, seed, params, batches or [rows(ROWS)], mesh)
    made = weights.upcycle(migration, params, layouts, how, mesh, seed)
    for name, where in migration.new.shardings(mesh).items():
        assert made[name].shape == migration.new.shapes()[name]
        assert made[name].sharding.is_equivalent_to(where, made[name].ndim), name
    return migration, made, layouts


def moved(migration, made, mesh=None, key=None):
    mesh = mesh or on()
    batch = to_mesh(rows(ROWS), mesh)
    ours, _ = drift.hidden(migration.new, made, batch, mesh, key)
    weight = (batch.segments[:, PATCHES:] > 0).astype(jnp.float32)
    theirs = jnp.asarray(dense_hidden())
    where = ours.sharding if mesh.size > 1 else None
    theirs = jax.device_put(theirs, where) if where is not None else theirs
    return float(drift.distance(ours, theirs, made["decoder.embedding"], weight))


SAME = {
    "every second": (dict(decoder=MOE), "copy"),
    "last": (dict(decoder=dataclasses.replace(MOE, placement="last_1")), "copy"),
    "a list": (dict(decoder=dataclasses.replace(MOE, placement=(0, 3))), "copy"),
    "all": (dict(decoder=dataclasses.replace(MOE, placement="all")), "copy"),
    "everywhere": (
        {p: dataclasses.replace(MOE, placement="all") for p in PARTS} | {"decoder": MOE}, "copy",
    ),
    "shared": (
        {p: dataclasses.replace(MOE, shared_experts=2, placement="all") for p in PARTS}, "copy",
    ),
    "granular": (
        {p: dataclasses.replace(MOE, granularity=2, placement="all") for p in PARTS}, "granular",
    ),
    "narrow experts": (
        dict(decoder=dataclasses.replace(MOE, num_experts=8, experts_per_token=4, mlp_dim=12)),
        "granular",
    ),
    "granular and shared": (
        dict(
            vision=dataclasses.replace(MOE, granularity=2, shared_experts=1),
            decoder=dataclasses.replace(MOE, granularity=4, shared_experts=3),
        ), "granular",
    ),
    "granular, hashed": (
        dict(decoder=dataclasses.replace(MOE, granularity=2, router="hash")), "granular",
    ),
    "experts choose": (
        dict(
            connector=dataclasses.replace(
                MOE, granularity=2, router="expert_choice", eval_capacity_factor=100.0,
                placement="all",
            )
        ), "granular",
    ),
    "balanced by bias": (dict(decoder=dataclasses.replace(MOE, bias_rate=0.01)), "copy"),
}  # fmt: skip


@pytest.mark.parametrize("name", SAME)
def test_the_function_stays(name):
    parts, method = SAME[name]
    migration, made, _ = upcycle(model(**parts), Upcycling(method))
    assert moved(migration, made) <= 1e-5


def test_a_router_of_zeros_breaks_no_group():
    options = dataclasses.replace(MOE, granularity=2)
    how = Upcycling("granular", router_init="zeros")
    migration, made, _ = upcycle(model(decoder=options, vision=options), how)
    assert not np.asarray(made["vision.blocks.segments.0.1.mlp.router"]).any()
    assert moved(migration, made) <= 1e-5


@pytest.mark.parametrize("granularity", [1, 4])
def test_the_function_stays_for_every_k(granularity):
    options = dataclasses.replace(MOE, granularity=granularity)
    how = Upcycling("granular" if granularity > 1 else "copy")
    migration, made, _ = upcycle(model(decoder=options), how)
    # In training too, where nothing is dropped and nothing breaks up a group.
    still = dataclasses.replace(options, dispatcher="dropless", noise_std=0.0)
    for k, key in ((1, None), (2, jax.random.key(0)), (3, None), (4, None)):
        chosen = dataclasses.replace(still, experts_per_token=k)
        one = Migration(migration.old, Blueprint.create(model(decoder=chosen), VOCAB))
        assert moved(one, made, key=key) <= 1e-5


@pytest.mark.parametrize(
    "sizes", [{"fsdp": 2, "expert": 2, "tensor": 2}, {"data": 2, "expert": 4}], ids=str
)
@pytest.mark.parametrize("name", ["everywhere", "granular and shared"])
def test_any_mesh_gives_the_same(sizes, name):
    parts, method = SAME[name]
    one = upcycle(model(**parts), Upcycling(method))[1]
    mesh = on(sizes, 8)
    migration, made, _ = upcycle(model(**parts), Upcycling(method), mesh)
    for n in one:
        np.testing.assert_allclose(made[n], one[n], atol=1e-7, err_msg=n)
    assert moved(migration, made, mesh) <= 1e-5


def test_drawn_units_do_not_depend_on_the_mesh():
    new = model(decoder=MOE, vision=MOE)
    one = upcycle(new, Upcycling("drop"))[1]
    eight = upcycle(new, Upcycling("drop"), on({"fsdp": 2, "expert": 2, "tensor": 2}, 8))[1]
    for n in one:
        np.testing.assert_allclose(eight[n], one[n], atol=1e-6, err_msg=n)


@pytest.mark.parametrize("part", ["vision", "decoder"])
def test_drop_draws_the_same_units_of_all_matrices(part):
    options = dataclasses.replace(MOE, num_experts=8, placement="all")
    migration, made, layouts = upcycle(
        model(**{part: options}), Upcycling("drop", drop_fraction=0.25)
    )
    _, params = dense()
    old, new = (f"{part}.blocks.segments.0.0.mlp{e}" for e in ("", ".experts"))
    width = migration.dense_width(part)
    w_in, w_out = (np.asarray(made[f"{new}.{leaf}"]) for leaf in ("w_in", "w_out"))
    for layer in range(w_in.shape[0]):
        fresh = layouts[part, layer].experts.fresh
        assert (fresh.sum(1) == round(0.25 * width)).all()
        assert len({row.tobytes() for row in fresh}) == 8  # each expert its own
        changed_in = (w_in[layer] != params[f"{old}.w_in"][layer]).all((1, 2))
        changed_out = (w_out[layer] != params[f"{old}.w_out"][layer]).all(2)
        np.testing.assert_array_equal(changed_in, fresh)
        np.testing.assert_array_equal(changed_out, fresh)
        if part == "vision":
            b_in = np.asarray(made[f"{new}.b_in"])[layer, :, 0]
            np.testing.assert_array_equal(b_in != params[f"{old}.b_in"][layer, 0], fresh)


def test_drop_keeps_mean_and_deviation():
    blueprint, params = dense()
    name = "decoder.blocks.segments.0.0.mlp.w_in"
    shifted = {**params, name: params[name] * 3 + 2}
    new = Blueprint.create(model(decoder=dataclasses.replace(MOE, placement="all")), VOCAB)
    migration, how = Migration(blueprint, new), Upcycling("drop", drop_fraction=1.0)
    on_mesh = jax.device_put(shifted, blueprint.shardings(on()))
    layouts = plan(migration, how, 0, on_mesh, [], on())
    made = weights.upcycle(migration, on_mesh, layouts, how, on(), 0)
    drawn = np.asarray(made[name.replace("mlp.", "mlp.experts.")])
    for layer, w in enumerate(shifted[name]):
        np.testing.assert_allclose(drawn[layer].mean(), w.mean(), rtol=0.02)
        np.testing.assert_allclose(drawn[layer].std(), w.std(), rtol=0.02)


def test_noise_is_in_proportion_to_each_matrix():
    options = dataclasses.replace(MOE, placement="all", shared_experts=1)
    plain = upcycle(model(vision=options), Upcycling("copy"))[1]
    noisy = upcycle(model(vision=options), Upcycling("noise", noise=0.3))[1]
    for name, w in plain.items():
        difference = np.asarray(noisy[name] - w)
        if ".experts.w_" in name:
            np.testing.assert_allclose(difference.std() / np.asarray(w).std(), 0.3, rtol=0.05)
        else:
            assert not difference.any(), name


def test_routers():
    options = dataclasses.replace(MOE, granularity=2, placement="all", bias_rate=0.01)
    _, made, _ = upcycle(model(vision=options), Upcycling("granular"))
    router = np.asarray(made["vision.blocks.segments.0.0.mlp.router"])
    np.testing.assert_array_equal(router[..., ::2], router[..., 1::2])
    np.testing.assert_allclose(router.std(), 0.02, rtol=0.2)
    assert (router[0] != router[1]).all()  # each layer its own
    assert not np.asarray(made["vision.blocks.segments.0.0.mlp.bias"]).any()


def test_parts_that_are_moe_already_stay():
    """An MoE model's tower is kept while its decoder is upcycled."""
    before = Blueprint.create(model(vision=dataclasses.replace(MOE, placement="last_1")), VOCAB)
    after = model(vision=dataclasses.replace(MOE, placement="last_1"), decoder=MOE)
    check(before.config, after, "SOURCE")
    migration = Migration(before, Blueprint.create(after, VOCAB))
    params = before.init(jax.random.key(0), on())
    batch = to_mesh(rows(ROWS), on())
    theirs, _ = drift.hidden(before, params, batch, on())
    layouts = plan(migration, Upcycling(), 0, params, [], on())
    assert set(layouts) == {("decoder", 1), ("decoder", 3)}
    made = weights.upcycle(migration, dict(params), layouts, Upcycling(), on(), 0)
    ours, _ = drift.hidden(migration.new, made, batch, on())
    weight = (batch.segments[:, PATCHES:] > 0).astype(jnp.float32)
    assert float(drift.distance(ours, theirs, made["decoder.embedding"], weight)) <= 1e-5


def test_what_moves_is_told_by_how_much():
    for name, how, options in (
        ("noise", Upcycling("noise"), MOE),
        ("drop", Upcycling("drop"), MOE),
        ("no renormalisation", Upcycling("copy"), dataclasses.replace(MOE, renormalize=False)),
    ):
        migration, made, _ = upcycle(model(decoder=options), how)
        assert 1e-4 < moved(migration, made) < 2, name
