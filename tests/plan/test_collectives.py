"""What a program sends over which axis: a text by hand, what XLA prints, the training step."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from tests.model.test_vlm import VOCAB, rows, small
from tests.plan.test_hlo import SPELLED_OUT, TPU
from vimoe_jax.config import Config
from vimoe_jax.config.train import Optim, Train
from vimoe_jax.model.blueprint import Blueprint
from vimoe_jax.moe.options import MoEOptions
from vimoe_jax.parallel.mesh import make_mesh, to_mesh
from vimoe_jax.plan.collectives import collectives, replica_groups
from vimoe_jax.plan.hlo import Module
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


HLO = """HloModule jit_f, is_scheduled=true

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}

%body (p: (s32[], bf16[4,8])) -> (s32[], bf16[4,8]) {
  %p = (s32[], /*index=1*/bf16[4,8]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %x = bf16[4,8]{1,0} get-tuple-element(%p), index=1
  %start = (bf16[4,8]{1,0}, bf16[8,8]{1,0}) all-gather-start(%x), channel_id=1, \
replica_groups=[4,2]<=[2,2,2]T(0,2,1), dimensions={0}, metadata={op_name="jit(f)/while/gather"}
  %done = bf16[8,8]{1,0} all-gather-done(%start)
  ROOT %out = (s32[], bf16[4,8]{1,0}) tuple(%i, %x)
}

%condition (p: (s32[], bf16[4,8])) -> pred[] {
  %q = (s32[], bf16[4,8]{1,0}) parameter(0)
  ROOT %go = pred[] constant(true)
}

%wrapped (w: f32[16]) -> f32[8] {
  %w = f32[16]{0} parameter(0)
  ROOT %scatter = f32[8]{0} reduce-scatter(%w), replica_groups={{0,4},{1,5},{2,6},{3,7}}, \
dimensions={0}, to_apply=%add
}

ENTRY %main (x: (s32[], bf16[4,8]), y: f32[16]) -> f32[] {
  %x0 = (s32[], bf16[4,8]{1,0}) parameter(0)
  %y = f32[16]{0} parameter(1)
  %h = f32[2,3]{1,0} constant(0)
  %loop = (s32[], bf16[4,8]{1,0}) while(%x0), condition=%condition, body=%body, \
backend_config={"known_trip_count":{"n":"3"}}
  %both = (f32[16]{0}, f32[2,3]{1,0}) all-reduce(%y, %h), replica_groups={}, to_apply=%add
  %alone = f32[16]{0} all-reduce(%y), replica_groups=[8,1]<=[8], to_apply=%add
  %async = ((f32[16]{0}), f32[8]{0}) async-start(%y), calls=%wrapped
  %waited = f32[8]{0} async-done(%async), calls=%wrapped
  %swap = (f32[2,3]{1,0}, f32[2,3]{1,0}) all-to-all(%h, %h), replica_groups=mesh['a'=4,'b'=2] {'b'}
  %moved = f32[16]{0} collective-permute(%y), source_target_pairs={{0,2},{2,0},{5,5}}
  ROOT %zero = f32[] constant(0)
}
"""


def test_a_program_by_axes_bytes_and_rounds():
    mesh = make_mesh({"data": 2, "expert": 2, "tensor": 2}, jax.devices()[:8])
    found = [
        (c.kind, c.axes, c.bytes, c.shape, c.in_loop, c.count, c.group)
        for c in collectives(HLO, mesh)
    ]
    everyone = ("data", "expert", "tensor")
    assert found == [
        ("all-gather", ("expert",), 128, (8, 8), True, 3, 2),
        ("all-reduce", everyone, 64, (16,), False, 1, 8),
        ("all-reduce", everyone, 24, (2, 3), False, 1, 8),
        ("reduce-scatter", ("data",), 64, (8,), False, 1, 2),
        ("all-to-all", ("tensor",), 48, (2, 2, 3), False, 1, 2),
        ("collective-permute", ("expert",), 64, (16,), False, 1, 2),
    ]
    gather, reduce, *_, permute = collectives(HLO, mesh)
    assert gather.name == "jit(f)/while/gather"
    assert (gather.sent, reduce.sent, permute.sent) == (3 * 64, 2 * 56, 64)


@pytest.mark.parametrize(
    ("text", "groups"),
    [
        ("{{0,1},{2,3}}", [[0, 1], [2, 3]]),
        ("{}", [[0, 1, 2, 3]]),
        ("[2,2]<=[4]", [[0, 1], [2, 3]]),
        ("[2,2]<=[2,2]T(1,0)", [[0, 2], [1, 3]]),
        ("mesh['a'=2,'b'=2] {'a'}", [[0, 2], [1, 3]]),
        ("mesh['a'=2,'b'=2] {'b'}", [[0, 1], [2, 3]]),
        ("mesh['a'=2,'b'=2] {'b','a'}", [[0, 2, 1, 3]]),
        ("mesh['a'=4] {'a':(1)2}", [[0, 2], [1, 3]]),
        ("mesh['a'=4] {'a':(2)2}", [[0, 1], [2, 3]]),
        ("mesh['a'=2,'b'=2], device_ids=([2,2]T(1,0)) {'b'}", [[0, 2], [1, 3]]),
        ("mesh['a'=2,'b'=2], device_ids=(3,2,1,0) {'b'}", [[3, 2], [1, 0]]),
    ],
)
def test_replica_groups(text, groups):
    assert replica_groups(f"x), replica_groups={text}, dimensions={{0}}", 4) == groups


def test_replica_groups_of_an_unknown_form():
    with pytest.raises(ValueError, match="unknown form"):
        replica_groups("x), replica_groups=<0,1>", 4)


def test_what_xla_prints_today():
    """A product of split matrices: the sum over `tensor`, the gradient's over `data`."""
    mesh = make_mesh({"data": 4, "tensor": 2}, jax.devices()[:8])

    def put(*spec):
        return NamedSharding(mesh, PartitionSpec(*spec))

    def f(x, w, v):
        return jnp.sum((x @ w @ v) ** 2)

    split = (put("data", None), put(None, "tensor"), put("tensor", None))
    args = [np.ones(s, np.float32) for s in ((8, 4), (4, 6), (6, 10))]
    step = jax.jit(jax.grad(f, (1, 2)), in_shardings=split, out_shardings=split[1:])
    found = collectives(step.lower(*args).compile().as_text(), mesh)
    assert {(c.kind, c.axes, tuple(sorted(c.shape))) for c in found} == {
        ("all-reduce", ("tensor",), (2, 10)),
        ("all-reduce", ("data",), (3, 4)),
        ("all-reduce", ("data",), (3, 10)),
    }


@pytest.mark.parametrize("text", [TPU, SPELLED_OUT])
def test_a_tpu_programs_loops_and_reduce_scatters(text):
    mesh = make_mesh({"fsdp": 4}, jax.devices()[:4])
    (found,) = collectives(Module(text), mesh)
    assert (found.kind, found.axes, found.count) == ("reduce-scatter", ("fsdp",), 5)
    assert found.bytes == 16 * 8 * 4
    assert found.sent == 5 * 16 * 8 * 4 * 3 / 4
    assert collectives(text, mesh) == [found]
