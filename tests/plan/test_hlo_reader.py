"""Replica groups in all their spellings, loops, asynchronous and variadic operations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from vimoe_jax.parallel.mesh import make_mesh
from vimoe_jax.plan.collectives import collectives, replica_groups

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
