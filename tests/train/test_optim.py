"""Optimizers: what they keep, in which dtype, where it lies, and that they learn."""

import dataclasses
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.model.test_vlm import CONFIGS, VOCAB, random_params
from vimoe_jax.config.parts import part_name
from vimoe_jax.config.train import Optim
from vimoe_jax.model.blueprint import Blueprint
from vimoe_jax.parallel import rules
from vimoe_jax.parallel.mesh import make_mesh
from vimoe_jax.run import state as state_lib
from vimoe_jax.train import optim

ADAM16 = Optim(learning_rate=1e-2, warmup_steps=2, moments_dtype="bfloat16")
FACTOR = Optim(learning_rate=1e-2, warmup_steps=2, name="adafactor")
FACTOR16 = dataclasses.replace(FACTOR, moments_dtype="bfloat16")

# Long enough for two of a matrix' axes to be factored (128 and more).
SHAPES = {
    "decoder.one": ((130, 256), ("embed", "mlp")),
    "decoder.many": ((2, 4, 130, 144), ("layers", "experts", "embed", "mlp")),
    "decoder.deep": ((200, 8, 16), ("layers", None, None)),
    "decoder.scale": ((130,), ("embed",)),
}
AXES = {n: axes for n, (_, axes) in SHAPES.items()}


def tensors(seed=0):
    rng = np.random.default_rng(seed)
    return {n: jnp.asarray(rng.normal(size=s), jnp.float32) for n, (s, _) in SHAPES.items()}


def moments(state):
    return [a for a in jax.tree.leaves(state) if jnp.issubdtype(a.dtype, jnp.floating)]


def nbytes(c):
    state = jax.eval_shape(optim.make(c, 10, AXES).init, tensors())
    return sum(a.size * a.dtype.itemsize for a in moments(state))


@pytest.mark.parametrize("c", [ADAM16, FACTOR, FACTOR16], ids=["adam16", "factor", "factor16"])
def test_the_loss_falls(c):
    """Least squares: a matrix is found again from what it does."""
    x, right = tensors(1)["decoder.one"], tensors(2)["decoder.one"]
    tx = optim.make(c, 100, {"decoder.w": ("embed", "mlp")})

    def loss(params):
        return jnp.mean(jnp.square(x.T @ (params["decoder.w"] - 0.1 * right)))

    @jax.jit
    def train(params):
        def step(carry, _):
            params, state = carry
            value, grads = jax.value_and_grad(loss)(params)
            updates, state = tx.update(grads, state, params)
            return (optax.apply_updates(params, updates), state), value

        (params, _), values = jax.lax.scan(step, (params, tx.init(params)), length=100)
        return params, values

    params, losses = train({"decoder.w": jnp.zeros_like(right)})
    assert params["decoder.w"].dtype == np.dtype("float32")
    assert losses[-1] < 0.2 * losses[0]


def test_bytes_of_the_state():
    size = sum(p.size for p in tensors().values())
    assert nbytes(Optim()) == 8 * size
    assert nbytes(ADAM16) == 4 * size
    assert nbytes(FACTOR) < 4.2 * size + 4 * tensors()["decoder.deep"].size
    assert nbytes(FACTOR16) < 2.2 * size + 4 * tensors()["decoder.deep"].size
    no_momentum = {k: v for k, v in tensors().items() if k in ("decoder.one", "decoder.many")}
    axes = {n: AXES[n] for n in no_momentum}
    state = optim.make(dataclasses.replace(FACTOR, b1=0.0), 10, axes).init(no_momentum)
    assert sum(m.size for m in moments(state)) < 0.02 * sum(p.size for p in no_momentum.values())


def test_bfloat16_moments_follow_the_float32_ones():
    wide, narrow = (optim.make(Optim(moments_dtype=d), 10, AXES) for d in ("float32", "bfloat16"))
    params = tensors()
    a, b = wide.init(params), narrow.init(params)
    assert {m.dtype for m in moments(b)} == {jnp.dtype("bfloat16")}
    for i in range(3):
        grads = tensors(i + 1)
        update = jax.jit(wide.update)(grads, a, params)
        other = jax.jit(narrow.update)(grads, b, params)
        a, b = update[1], other[1]
    for x, y in zip(jax.tree.leaves(update[0]), jax.tree.leaves(other[0]), strict=True):
        np.testing.assert_allclose(x, y, atol=0.02 * float(jnp.abs(x).max()))


def test_rounding_at_random_is_right_on_average():
    x = jnp.full(20000, 1 + 0.3 * 2**-7, jnp.float32)  # three tenths of the way to the next one
    rounded = optim.round_at_random(x, jax.random.key(0)).astype(jnp.float32)
    assert set(np.unique(rounded)) == {1, 1 + 2**-7}
    assert float((rounded > 1).mean()) == pytest.approx(0.3, abs=0.02)
    minus = optim.round_at_random(-x, jax.random.key(0)).astype(jnp.float32)
    np.testing.assert_array_equal(minus, -rounded)


def test_rounding_keeps_what_bfloat16_can_hold_and_what_is_no_number():
    x = jnp.asarray([0.0, -0.0, 1.5, -3.0, jnp.inf, -jnp.inf, jnp.nan, 2.0**-126], jnp.float32)
    for seed in range(20):
        rounded = optim.round_at_random(x, jax.random.key(seed)).astype(jnp.float32)
        np.testing.assert_array_equal(rounded, x)


def test_a_slow_moment_still_moves():
    """Rounded to the nearest, a second moment of decay 0.999 would never leave 1."""
    tx = optim._stored("bfloat16", optax.scale_by_adam(0.9, 0.999))
    state = tx.init({"w": jnp.zeros(1000)})
    state = state._replace(nu={"w": jnp.ones(1000, jnp.bfloat16)})

    def step(state, _):
        return tx.update({"w": jnp.zeros(1000)}, state)[1], None

    state, _ = jax.lax.scan(step, state, length=300)
    assert float(state.nu["w"].astype(jnp.float32).mean()) == pytest.approx(0.999**300, abs=0.01)


def test_every_layer_and_expert_is_factored_by_itself():
    tx = optim.make(dataclasses.replace(FACTOR, clip_norm=0.0), 10, AXES)
    params = tensors()
    grads = tensors(1)
    # One expert's gradients are a thousand times as large: no other one's update may notice.
    loud = {**grads, "decoder.many": grads["decoder.many"].at[0, 0].multiply(1000)}
    quiet_state = tx.init(params)
    for _ in range(3):  # the first step's rate is 0
        quiet, quiet_state = tx.update(grads, quiet_state, params)
    loud_state = tx.init(params)
    for _ in range(3):
        other, loud_state = tx.update(loud, loud_state, params)
    a, b = quiet["decoder.many"], other["decoder.many"]
    np.testing.assert_allclose(a[0, 1:], b[0, 1:], rtol=1e-5)
    np.testing.assert_allclose(a[1], b[1], rtol=1e-5)
    shapes = {s.shape for s in moments(quiet_state)}
    assert {(2, 4, 130), (2, 4, 144)} <= shapes
    assert not any(s[0] == 8 or s[:1] == (16,) for s in shapes), "layers were summed over"


def test_one_matrix_moves_as_optax_moves_it():
    c = dataclasses.replace(FACTOR, clip_norm=0.0, warmup_steps=0, weight_decay=0.0, b1=0.0)
    axes = {"decoder.one": AXES["decoder.one"]}
    tx = optim.make(c, 10, axes)
    peer = optax.chain(optax.scale_by_factored_rms(), optax.clip_by_block_rms(1.0))
    params = {"decoder.one": tensors()["decoder.one"]}
    state, peer_state = tx.init(params), peer.init(params)
    for i in range(3):
        grads = {"decoder.one": tensors(i)["decoder.one"]}
        mine, state = tx.update(grads, state, params)
        theirs, peer_state = peer.update(grads, peer_state, params)
        rate = float(optim.schedule(c, 10)(i))
        np.testing.assert_allclose(
            mine["decoder.one"], -rate * theirs["decoder.one"], rtol=1e-5, atol=1e-8
        )


def shaped():
    """What `state.shardings` asks of a blueprint, for the parameters of this file."""

    def shardings(mesh, over=rules.KEPT):
        return {n: rules.sharding(a, s, mesh, over) for n, (s, a) in SHAPES.items()}

    blueprint = mock.create_autospec(Blueprint, instance=True)
    blueprint.axes.return_value = AXES
    blueprint.shapes.return_value = {n: s for n, (s, _) in SHAPES.items()}
    blueprint.shardings.side_effect = shardings
    blueprint.abstract.side_effect = lambda mesh: {
        n: jax.ShapeDtypeStruct(s, jnp.float32, sharding=shardings(mesh)[n])
        for n, (s, _) in SHAPES.items()
    }
    return blueprint


@pytest.mark.parametrize("c", [ADAM16, FACTOR16], ids=["adam16", "factor16"])
def test_the_state_lies_where_its_parameters_lie(c):
    mesh = make_mesh({"fsdp": 2, "expert": 2, "tensor": 2})
    tx = optim.make(c, 10, AXES)
    where = state_lib.shardings(shaped(), tx, set(SHAPES), mesh)

    def create(params):
        return state_lib.create(params, tx, set(SHAPES))

    state = jax.jit(create, out_shardings=where)(tensors())
    specs = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(state.opt_state):
        if "decoder.many" in str(path) and leaf.ndim:
            specs.setdefault(leaf.shape, set()).add(leaf.sharding.shard_shape(leaf.shape))
    assert specs[(2, 4, 130, 144)] == {(2, 2, 65, 72)}
    if c.name == "adafactor":
        assert specs[(2, 4, 130)] == {(2, 2, 65)}
        assert specs[(2, 4, 144)] == {(2, 2, 72)}


@pytest.mark.parametrize("c", [ADAM16, FACTOR16], ids=["adam16", "factor16"])
def test_a_mesh_changes_no_number(c):
    """The order of sums aside: random rounding draws the same bits wherever they lie."""
    mesh = make_mesh({"fsdp": 2, "expert": 2, "tensor": 2})
    tx = optim.make(c, 10, AXES)
    where = state_lib.shardings(shaped(), tx, set(SHAPES), mesh)

    def steps(params, grads):
        def step(state, grads):
            updates, state = tx.update(grads, state, params)
            return state, updates

        state, updates = jax.lax.scan(step, tx.init(params), grads)
        return {n: u[-1] for n, u in updates.items()}, state

    args = tensors(), jax.tree.map(lambda *g: jnp.stack(g), *(tensors(i) for i in range(3)))
    updates, state = jax.jit(steps, out_shardings=(where.params, where.opt_state))(*args)
    expected, expected_state = jax.jit(steps)(*args)
    # A sum that differs in its last bit may be rounded to the other side, once in a thousand.
    for name in SHAPES:
        assert np.isclose(updates[name], expected[name], rtol=1e-4, atol=1e-7).mean() > 0.999
    for a, b in zip(moments(state), moments(expected_state), strict=True):
        assert a.dtype != jnp.bfloat16 or np.mean(np.asarray(a) == np.asarray(b)) > 0.999


def test_frozen_parts_have_no_state():
    c = dataclasses.replace(FACTOR, vision_rate=0.0)
    blueprint = Blueprint.create(CONFIGS["moe"], VOCAB)
    axes = blueprint.axes()
    trainable = {n for n in axes if c.rate(part_name(n)) > 0}
    tx = optim.make(c, 10, {n: axes[n] for n in sorted(trainable)})
    state = state_lib.create(jax.device_put(random_params(blueprint)), tx, trainable)
    paths = [str(p) for p, _ in jax.tree_util.tree_leaves_with_path(state.opt_state)]
    assert any("decoder." in p for p in paths) and not any("vision." in p for p in paths)


def test_rates_scale_adafactors_updates():
    c = dataclasses.replace(FACTOR, warmup_steps=0, weight_decay=0.0)
    params, grads = tensors(), tensors(1)
    whole, _ = (tx := optim.make(c, 10, AXES)).update(grads, tx.init(params), params)
    tx = optim.make(dataclasses.replace(c, decoder_rate=0.25), 10, AXES)
    quarter, _ = tx.update(grads, tx.init(params), params)
    for name in SHAPES:
        np.testing.assert_allclose(0.25 * whole[name], quarter[name], rtol=1e-6)


def test_stopped_and_continued_is_bit_identical():
    tx, params = optim.make(FACTOR16, 10, AXES), tensors()
    update = jax.jit(tx.update)

    def steps(state, first, last):
        for i in range(first, last):
            updates, state = update(tensors(i), state, params)
        return updates, state

    whole = steps(tx.init(params), 0, 4)
    _, half = steps(tx.init(params), 0, 2)
    saved = jax.tree.map(lambda a: jnp.asarray(np.asarray(a)), half)
    again = steps(saved, 2, 4)
    jax.tree.map(np.testing.assert_array_equal, whole, again)
