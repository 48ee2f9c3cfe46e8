"""What the compiled training step sends over which axis."""

import dataclasses
import math

import jax
import optax
import pytest

from tests.model.test_vlm import VOCAB, rows, small
from vimoe_jax.config import Config
from vimoe_jax.config.train import Optim, Train
from vimoe_jax.model.blueprint import Blueprint
from vimoe_jax.moe.options import MoEOptions
from vimoe_jax.parallel.mesh import make_mesh, to_mesh
from vimoe_jax.plan.collectives import collectives
from vimoe_jax.train.program import Program

# Sizes that nothing else has: F of an expert, and the model's D, 32, of which a row of tokens is.
MOE = MoEOptions(num_experts=4, group_size=16, mlp_dim=28, placement="every_2")
SIZES = {"data": 2, "fsdp": 2, "expert": 2}
WIDTH, PLACES, ROWS = 32, 16, 8


def sent(dispatcher, sizes=SIZES, unroll=1, **moe):
    """The collectives of a step."""
    moe = dataclasses.replace(MOE, dispatcher=dispatcher, **moe)
    model = dataclasses.replace(small(decoder={"moe": moe}), unroll=unroll)
    c = Config(model=model, train=Train(batch_size=ROWS), optim=Optim())
    mesh = make_mesh(sizes, jax.devices()[: math.prod(sizes.values())])
    program = Program.create(c, Blueprint.create(c.model, VOCAB), mesh, optax.sgd(0.1))
    batch = to_mesh(rows([[4, 5]] * ROWS), mesh)
    step = program.step().lower(program.abstract(), batch)
    return collectives(step.compile().as_text(), mesh)


@pytest.fixture(scope="module", params=["gather", "dropless"])
def step(request):
    return sent(request.param, batch_priority=request.param == "gather")


def test_tokens_travel_to_their_experts_by_all_to_all(step):
    exchanges = [c for c in step if c.kind == "all-to-all"]
    # There and back, in both passes of the layers' scan: two MoE layers of one pattern.
    assert len(exchanges) >= 4
    for c in exchanges:
        assert c.axes == ("expert",)
        assert c.in_loop
        assert c.count == 2
        assert c.shape[-1] == WIDTH


def test_no_experts_weights_are_gathered_over_the_experts_axis(step):
    gathers = [c for c in step if c.kind == "all-gather" and "expert" in c.axes]
    assert not [c for c in gathers if MOE.mlp_dim in c.shape]
    # Where tokens go to experts: only what the devices tell each other before, how many rows for
    # each expert.
    for c in gathers:
        assert not c.in_loop or math.prod(c.shape) <= 2 * MOE.num_experts


def test_over_data_parameters_are_gathered_once_and_activations_never(step):
    """Tokens aside, which look up their embeddings where these are: whole numbers."""
    gathers = [c for c in step if c.kind == "all-gather" and "data" in c.axes]
    assert [c for c in gathers if MOE.mlp_dim in c.shape]
    assert not [c for c in gathers if c.in_loop or c.count > 1]
    assert not [c for c in gathers if ROWS in c.shape and WIDTH in c.shape and PLACES in c.shape]


def test_parameters_are_gathered_layer_by_layer(step):
    gathers = [c for c in step if c.kind == "all-gather" and c.axes == ("fsdp",)]
    experts = [c for c in gathers if MOE.mlp_dim in c.shape]
    assert experts
    assert all(c.in_loop and c.count == 2 for c in experts)
    # A device's share of one layer's experts, all of their inputs: never of all layers.
    most = MOE.num_experts // SIZES["expert"] * WIDTH * 2 * MOE.mlp_dim * 4
    assert all(c.bytes <= most for c in experts)


def test_gradients_of_split_experts_are_summed_once_a_layer(step):
    """By reduce-scatter, or where XLA has none of a split (on CPU) by all-reduce and a slice."""
    sums = [
        c
        for c in step
        if c.kind in ("all-reduce", "reduce-scatter")
        and MOE.mlp_dim in c.shape
        and len(c.shape) >= 3
    ]
    assert {axis for c in sums for axis in c.axes} == {"data", "fsdp"}
    assert all(c.in_loop for c in sums)


def test_where_no_loop_is_left_each_layers_parameters_travel_alone():
    def gathers(unroll):
        step = sent("dropless", {"data": 2}, unroll)
        return [c for c in step if c.kind == "all-gather" and MOE.mlp_dim in c.shape]

    one_layer = MOE.num_experts * WIDTH * 2 * MOE.mlp_dim
    assert max(math.prod(c.shape) for c in gathers(1)) == 2 * one_layer
    assert max(math.prod(c.shape) for c in gathers(4)) == one_layer


def test_without_an_experts_axis_no_token_travels():
    step = sent("dropless", {"data": 2, "fsdp": 2})
    assert {c.kind for c in step} <= {"all-gather", "all-reduce", "reduce-scatter"}
