"""The reader of programs: types, operands, loops' lengths, what calls what."""

import pytest

from vimoe_jax.plan import hlo
from vimoe_jax.plan.hlo import Array

# A TPU program in small: no known trip counts, a counter that steps by two from three, a batched
# product as a convolution with a window, a reduce-scatter in a fusion, an array in the chip.
TPU = """\
HloModule jit_step, is_scheduled=true

%add.1 (a: f32[], b: f32[]) -> f32[] {
  %a = f32[]{:T(128)} parameter(0)
  %b = f32[]{:T(128)} parameter(1)
  ROOT %s = f32[]{:T(128)} add(%a, %b)
}

%all-reduce-scatter.3 (input: f32[16,8]) -> f32[4,8] {
  %input = f32[16,8]{1,0:T(8,128)} parameter(0)
  %all-reduce.1 = f32[16,8]{1,0:T(8,128)} all-reduce(%input), replica_groups={{0,1,2,3}}, to_apply=%add.1
  %constant.9 = s32[]{:T(128)} constant(0)
  ROOT %dynamic-slice.1 = f32[4,8]{1,0:T(8,128)} dynamic-slice(%all-reduce.1, %constant.9, %constant.9), dynamic_slice_sizes={4,8}
}

%body.1 (p: (s32[], f32[16,8])) -> (s32[], f32[16,8]) {
  %p = (s32[]{:T(128)}, f32[16,8]{1,0:T(8,128)}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%p), index=0
  %x = f32[16,8]{1,0:T(8,128)} get-tuple-element(%p), index=1
  %two = s32[]{:T(128)} constant(2)
  %next = s32[]{:T(128)} add(%i, %two)
  %fusion.1 = f32[4,8]{1,0:T(8,128)} fusion(%x), kind=kCustom, calls=%all-reduce-scatter.3
  ROOT %t = (s32[]{:T(128)}, f32[16,8]{1,0:T(8,128)}) tuple(%next, %x)
}

%condition.1 (p.1: (s32[], f32[16,8])) -> pred[] {
  %p.1 = (s32[]{:T(128)}, f32[16,8]{1,0:T(8,128)}) parameter(0)
  %i.1 = s32[]{:T(128)} get-tuple-element(%p.1), index=0
  %bound = s32[]{:T(128)} constant(12)
  ROOT %less = pred[]{:T(512)} compare(%i.1, %bound), direction=LT
}

ENTRY %main (x.1: f32[16,8]) -> f32[16,8] {
  %x.1 = f32[16,8]{1,0:T(8,128)} parameter(0)
  %three = s32[]{:T(128)} constant(3)
  %start = (s32[]{:T(128)}, f32[16,8]{1,0:T(8,128)}) tuple(%three, %x.1)
  %while.1 = (s32[]{:T(128)}, f32[16,8]{1,0:T(8,128)}) while(%start), condition=%condition.1, body=%body.1
  %near = f32[16,8]{1,0:T(8,128)S(1)} copy(%x.1)
  ROOT %out = f32[16,8]{1,0:T(8,128)} get-tuple-element(%while.1), index=1
}
"""  # noqa: E501

# The same loop and sum as other compilers print them.
SPELLED_OUT = (
    TPU.replace("body=%body.1", 'body=%body.1, backend_config={"known_trip_count":{"n":"5"}}')
    .replace(" all-reduce(", " reduce-scatter(")
    .replace("direction=LT", "direction=NE")  # no counting without the compiler's own number
)


def test_a_loops_length_by_start_step_and_bound():
    module = hlo.Module(TPU)
    loop = module.computations["main"]["while.1"]
    assert module.trips("main", loop) == 5  # 3, 5, 7, 9, 11


def test_the_compilers_own_number_comes_first():
    module = hlo.Module(
        TPU.replace("body=%body.1", 'body=%body.1, x={"known_trip_count":{"n":"7"}}')
    )
    assert module.trips("main", module.computations["main"]["while.1"]) == 7


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("direction=LT", "direction=NE"),
        ("%bound = s32[]{:T(128)} constant(12)", "%bound = s32[]{:T(128)} copy(%i.1)"),
        ("compare(%i.1, %bound)", "compare(%elsewhere, %bound)"),
        ("condition=%condition.1", "condition=%elsewhere"),
    ],
)
def test_a_loop_of_unknown_length_is_one_round(old, new):
    assert old in TPU
    module = hlo.Module(TPU.replace(old, new))
    assert module.trips("main", module.computations["main"]["while.1"]) == 1


def test_an_all_reduce_that_a_fusion_scatters_is_a_reduce_scatter():
    module = hlo.Module(TPU)
    inside = module.computations["all-reduce-scatter.3"]["all-reduce.1"]
    assert inside.kind == "reduce-scatter"
    assert {i.kind for c in module.computations.values() for i in c.values()}.isdisjoint(
        {"all-reduce"}
    )
    alone = hlo.Module(TPU.replace("all-reduce-scatter.3", "fused_computation.3"))
    assert alone.computations["fused_computation.3"]["all-reduce.1"].kind == "all-reduce"


def test_both_ways_to_write_a_program_are_one_to_the_reader():
    short, long = hlo.Module(TPU), hlo.Module(SPELLED_OUT)
    assert [(c, i.name, i.kind, *rest) for c, i, *rest in short.executed()] == [
        (c, i.name, i.kind, *rest) for c, i, *rest in long.executed()
    ]


def test_what_runs_how_often_and_where():
    found = {(c, i.name): rest for c, i, *rest in hlo.Module(TPU).executed()}
    assert found["main", "near"] == [1, False, False]
    assert found["body.1", "next"] == [5, True, False]
    assert found["all-reduce-scatter.3", "all-reduce.1"] == [5, True, True]
    assert found["add.1", "s"] == [5, True, True]  # applied by the reduction
    assert ("condition.1", "less") not in found
    more = {(c, i.name): rest for c, i, *rest in hlo.Module(TPU).executed(conditions=True)}
    assert more == found | {
        ("condition.1", name): [5, True, False] for name in ("p.1", "i.1", "bound", "less")
    }


def test_both_branches_of_a_conditional_run():
    text = """\
%yes (a: f32[2]) -> f32[2] {
  %a = f32[2]{0} parameter(0)
  ROOT %twice = f32[2]{0} add(%a, %a)
}

%no (b: f32[2]) -> f32[2] {
  ROOT %b = f32[2]{0} parameter(0)
}

ENTRY %main (p: pred[], x: f32[2]) -> f32[2] {
  %p = pred[] parameter(0)
  %x = f32[2]{0} parameter(1)
  ROOT %either = f32[2]{0} conditional(%p, %x, %x), CALLS
}
"""
    for calls in (
        "true_computation=%yes, false_computation=%no",
        "branch_computations={%yes, %no}",
    ):
        module = hlo.Module(text.replace("CALLS", calls))
        assert [i.name for _, i, *_ in module.executed()] == ["p", "x", "either", "a", "twice", "b"]


def test_parts_of_an_instruction():
    module = hlo.Module(
        """\
ENTRY %main (x: f32[4]) -> f32[4] {
  %t = (s32[]{:T(128)}, /*index=1*/bf16[3,5]{1,0:T(8,128)(2,1)S(1)}, pred[7]{0}, s4[3]{0}, token[]) \
custom-call(%x.1, %y-2), custom_call_target="f(%z)", metadata={op_name="jit(f)/while/dot"}
  ROOT %minus = s32[] constant(-3)
}
"""  # noqa: E501
    )
    assert module.entry == "main" and module.root("main").name == "minus"
    t, minus = module.computations["main"].values()
    assert (t.kind, t.operands, t.op_name) == ("custom-call", ("x.1", "y-2"), "jit(f)/while/dot")
    assert t.arrays == (
        Array((), 4, False),
        Array((3, 5), 30, True),
        Array((7,), 7, False),
        Array((3,), 2, False),
        Array((), 0, False),
    )
    assert (minus.number(), t.number(), minus.calls, minus.called("body")) == (-3, None, (), "")


def test_an_empty_text_runs_nothing():
    assert not list(hlo.Module("").executed())
