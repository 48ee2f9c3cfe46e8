"""The routers' table: it agrees with what the classes do, and takes routers from elsewhere."""

import dataclasses
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from vimoe_jax import config
from vimoe_jax.moe import routers
from vimoe_jax.moe.block import MoE, weighted_losses
from vimoe_jax.moe.options import MoEOptions, complaints
from vimoe_jax.moe.routers import ROUTERS, base
from vimoe_jax.moe.routing import Assignment, Mixing, assign, find_largest, gates_of
from vimoe_jax.parallel.parameters import fan_in, param

D, E, K, IDS = 6, 4, 2, 9
KEY = jax.random.key(1)
GIVEN = {"soft_slots": 2}  # values for what routers need


def options(name, **changes):
    needed = {option: GIVEN[option] for option in ROUTERS[name].needs}
    given = {"num_experts": E, "experts_per_token": K, "router": name, "mlp_dim": 8, **needed}
    return MoEOptions(**given, **changes)


def route(name, x, ids, key=KEY, **changes):
    router = base.make(options(name, **changes))
    made = router.variables(D, num_ids=IDS, rngs=nnx.Rngs(0))
    values = {name: variable[...] for name, variable in made.items()}
    return router.route(values, x, jnp.ones(x.shape[:2], bool), ids=ids, key=key)


def tokens(groups=2, num=8, seed=0):
    rng = np.random.default_rng(seed)
    return jnp.float32(rng.normal(size=(groups, num, D))), jnp.asarray(
        rng.integers(0, IDS, (groups, num))
    )


def layer(options):
    how = dict(activation="swiglu", bias=False, dtype=jnp.float32, rngs=nnx.Rngs(0))
    return MoE(options, D, 8, D, **how, num_ids=IDS)


# --- what the table says is so -----------------------------------------------------------------


@pytest.mark.parametrize("name", ROUTERS)
def test_the_table_names_a_class_and_real_options(name):
    traits, fields = ROUTERS[name], {f.name for f in dataclasses.fields(MoEOptions)}
    assert issubclass(traits.load(), base.Router)
    assert type(base.make(options(name))) is traits.load()
    assert {*traits.accepts, *traits.needs} <= fields


@pytest.mark.parametrize("name", ROUTERS)
def test_who_chooses_is_as_the_table_says(name):
    traits, (x, ids) = ROUTERS[name], tokens()
    found = route(name, x, ids, capacity_factor=0.5).assignment
    assert isinstance(found, Mixing if traits.mixes else Assignment)
    routed, kept = (np.asarray(c) for c in found.counts(jnp.ones(x.shape[:2], bool)))
    if traits.token_choice:
        np.testing.assert_array_equal(routed.sum(-1), K)
    if traits.expert_choice:
        np.testing.assert_array_equal(kept.sum(1), found.capacity)
    if traits.mixes:
        np.testing.assert_array_equal(routed, kept)


@pytest.mark.parametrize("name", ROUTERS)
def test_causal_routers_depend_on_no_later_token(name):
    (x, ids), (other, other_ids) = tokens(), tokens(seed=1)
    # Room for all: of an expert's slots, all first choices come before all second ones.
    room = 100.0 if ROUTERS[name].causal else 0.5
    first = layer(options(name, noise_std=0.0, capacity_factor=room, group_size=8))
    valid, kind = jnp.ones(ids.shape, bool), jnp.zeros(ids.shape, int)
    early = np.arange(8) < 4
    y, z = (
        first(x, valid, kind, num_kinds=1, key=KEY, ids=ids)[0]
        for x, ids in (
            (x, ids),
            (jnp.where(early[:, None], x, other), jnp.where(early, ids, other_ids)),
        )
    )
    moved = np.abs(y - z)[:, early].max()
    assert moved < 1e-6 if ROUTERS[name].causal else moved > 1e-4


@pytest.mark.parametrize("name", ROUTERS)
def test_noise_moves_the_weights_of_gated_routers_only(name):
    x, ids = tokens()
    gates = [route(name, x, ids, noise_std=s).gates for s in (0.0, 4.0)]
    assert (np.abs(gates[0] - gates[1]).max() > 1e-3) == ROUTERS[name].gated


def test_options_know_the_routers_without_jax():
    code = (
        "import sys\nfrom vimoe_jax.moe.options import MoEOptions, complaints\n"
        "o = MoEOptions(num_experts=4, router='expert_choice')\n"
        "print(*complaints(o, 2, 8, causal=True))\nassert 'jax' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.startswith("router: 'expert_choice' decides")


# --- a router from elsewhere -------------------------------------------------------------------


class Nearest(base.Router):
    """Each token goes to the K experts whose keys are nearest."""

    def variables(self, in_dim, *, num_ids, rngs):
        shape = (self.options.experts, in_dim)
        return {"keys": param(rngs, fan_in(1), shape, ("experts", "embed"))}

    def route(self, values, x, valid, *, ids, key):
        o, train = self.options, key is not None
        nearness = -jnp.square(x[:, :, None] - values["keys"]).sum(-1)
        gates = jax.nn.softmax(nearness)
        expert, _ = find_largest(jax.lax.stop_gradient(nearness), o.k(train=train))
        capacity = self.slots(x.shape[1], train=train)
        weight = gates_of(gates, expert)
        assignment = assign(expert, weight, o.experts, capacity, valid=valid)
        return base.Routing(assignment, gates, {})


@pytest.fixture
def mine():
    routers.register("mine", causal=True, gated=False)(Nearest)
    yield
    del ROUTERS["mine"]


def test_a_registered_router_routes(mine):
    routed = layer(options("mine", renormalize=False))
    names = {".".join(map(str, path)) for path, _ in nnx.to_flat_state(nnx.state(routed))}
    assert names == {"keys", "experts.w_in", "experts.w_out"}
    x, _ = tokens()
    valid = jnp.ones(x.shape[:2], bool).at[0, 5:].set(False)
    y, report = routed(x, valid, jnp.zeros(x.shape[:2], int), num_kinds=1)
    w_in, w_out = (np.asarray(w[...]) for w in (routed.experts.w_in, routed.experts.w_out))
    keys, expected = np.asarray(routed.keys[...]), np.zeros_like(x)
    for at in np.argwhere(valid):
        token = np.asarray(x)[tuple(at)]
        gates = np.exp(-np.square(token - keys).sum(-1))
        for e in np.argsort(-gates)[:K]:
            gate, up = token @ w_in[e, :, 0], token @ w_in[e, :, 1]
            out = (gate / (1 + np.exp(-gate)) * up) @ w_out[e]
            expected[tuple(at)] += gates[e] / gates.sum() * out
    np.testing.assert_allclose(y, expected, atol=1e-5)
    assert float(report.routed.sum()) == K * valid.sum()


def test_a_registered_router_learns(mine):
    routed = layer(options("mine"))
    x, _ = tokens()
    valid, kind = jnp.ones(x.shape[:2], bool), jnp.zeros(x.shape[:2], int)

    def loss(routed):
        y, report = routed(x, valid, kind, num_kinds=1, key=KEY)
        return jnp.sum(jnp.sin(y)) + weighted_losses(routed.options, report)

    gradient = nnx.grad(loss)(routed)
    assert all(np.isfinite(g).all() and np.any(g) for g in jax.tree.leaves(gradient))


def test_a_registered_router_is_a_name_like_others(mine):
    assert list(complaints(options("mine"), 4, 8, causal=True)) == []
    c = config.defaults()
    c.model.decoder.moe.num_experts, c.model.decoder.moe.router = 4, "mine"
    assert config.resolve(c.to_dict()).model.decoder.moe.traits.load() is Nearest


def test_names_are_taken_once(mine):
    routers.register("mine", causal=True, gated=False)(Nearest)  # a notebook's cell, run twice
    with pytest.raises(ValueError, match=r"router 'top_k': .*:TopK has this name"):
        routers.register("top_k", causal=True)(Nearest)
