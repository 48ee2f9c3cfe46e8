"""One configuration on any number of devices, split in any way: the numbers of one device."""

import dataclasses
import functools
import itertools
import math

import jax
import numpy as np
import optax
import pytest

from tests.model.test_vlm import VOCAB, random_params, rows
from vimoe_jax import config as config_lib
from vimoe_jax.config import Config
from vimoe_jax.config.train import Optim, Train
from vimoe_jax.model.blueprint import Blueprint
from vimoe_jax.moe.options import MoEOptions
from vimoe_jax.parallel import rules
from vimoe_jax.parallel.mesh import make_mesh, to_mesh
from vimoe_jax.train.program import Program
from vimoe_jax.train.step import make_loss_step, make_train_step

# Rows of uneven length, one without text; 128 tokens a step of the decoder, so that groups of 10
# leave a short one, and 13 groups that no mesh divides.
ROWS = [[5, 4, 3], [7, 5], [12], [6, 6], [4], [3, 3, 3, 3], [], [8, 4]]
MOE = MoEOptions(num_experts=4, group_size=10, mlp_dim=8, placement="all")


def model(vision=None, connector=None, decoder=None):
    """A small model with experts in the parts for which options are given."""

    def moe(changes):
        return {} if changes is None else {"moe": dataclasses.replace(MOE, **changes)}

    return config_lib.Model(
        image_size=16,
        patch_size=8,
        vision=config_lib.Vision(width=12, depth=1, num_heads=2, mlp_dim=16, **moe(vision)),
        connector=config_lib.Connector(**moe(connector)),
        decoder=config_lib.Decoder(
            width=16, depth=1, num_heads=4, num_kv_heads=2, head_dim=6, mlp_dim=24, **moe(decoder)
        ),
    )


MODELS = {
    "dense": model(),
    # Priority with drops and biased experts; a bound that takes several rounds; shared and fine
    # experts balanced by a bias.
    "top-k": model(
        vision=dict(batch_priority=True, capacity_factor=0.6),
        connector=dict(dispatcher="dropless", exchange_factor=0.5, group_size=16),
        decoder=dict(
            dispatcher="dropless",
            exchange_factor=0.5,
            bias_rate=0.01,
            granularity=2,
            shared_experts=1,
        ),
    ),
    "einsum": model(
        vision=dict(router="soft", soft_slots=2),
        connector=dict(dispatcher="einsum", batch_priority=True),
        decoder=dict(dispatcher="einsum", bias_rate=0.01, capacity_factor=0.8),
    ),
    "others": model(
        vision=dict(router="expert_choice", capacity_factor=1.0),
        connector=dict(router="expert_choice", dispatcher="einsum"),
        decoder=dict(router="hash", dispatcher="dropless", shared_experts=1, group_size=16),
    ),
    "others by gather": model(
        vision=dict(router="expert_choice"),
        connector=dict(router="soft", soft_slots=1),
        decoder=dict(router="hash", capacity_factor=0.8),
    ),
}


def numbers(name, sizes):
    """Metrics of a step, parameters less gradients after it, the validation loss before it."""
    c = Config(model=MODELS[name], train=Train(steps=10, batch_size=8), optim=Optim(warmup_steps=2))
    mesh = make_mesh(sizes, jax.devices()[: math.prod(sizes.values())])
    blueprint = Blueprint.create(c.model, VOCAB)
    program = Program.create(c, blueprint, mesh, optax.sgd(1.0))
    step = make_train_step(c, blueprint, program.tx, mesh)
    loss = make_loss_step(blueprint, mesh)

    def both(params, batch):
        state = jax.lax.with_sharding_constraint(program.state(params), program.shardings)
        return *step(state, batch), loss(params, batch)

    params = jax.device_put(random_params(blueprint), blueprint.shardings(mesh))
    state, metrics, validation = jax.jit(both)(params, to_mesh(rows(ROWS), mesh))
    return jax.device_get((metrics, state.params, state.frozen, validation))


single = functools.cache(lambda name: numbers(name, {}))


def furthest(a, b):
    """The largest difference, over 1 + |b|."""
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return max(float(np.max(np.abs(x - y) / (1 + np.abs(y)))) for x, y in pairs)


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("top-k", {"fsdp": 2, "expert": 2, "tensor": 2}),
        ("others", {"data": 2, "fsdp": 2, "expert": 2}),
    ],
    ids=str,
)
def test_a_mesh_gives_the_numbers_of_one_device(name, sizes):
    assert furthest(numbers(name, sizes), single(name)) < 1e-5


def factorisations(devices):
    """All sizes of the four axes whose product is `devices`; experts are four."""
    divisors = [d for d in range(1, devices + 1) if devices % d == 0]
    for sizes in itertools.product(divisors, repeat=4):
        if math.prod(sizes) == devices and 4 % sizes[2] == 0:
            yield dict(zip(rules.MESH_AXES, sizes, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(
    "sizes",
    [s for n in (2, 4, 8) for s in factorisations(n)],
    ids=lambda s: "-".join(map(str, s.values())),
)
def test_every_mesh_gives_the_numbers_of_one_device(name, sizes):
    difference = furthest(numbers(name, sizes), single(name))
    print(f"{name} {sizes}: {difference:.1e}")
    assert difference < 1e-5
