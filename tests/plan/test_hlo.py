"""Loops' lengths, arithmetic and traffic, from the text of compiled programs."""

import jax
import jax.numpy as jnp
import pytest

from vimoe_jax.plan import cost, hlo

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


def test_a_loops_length_by_start_step_and_bound():
    module = hlo.Module(TPU)
    loop = module.computations["main"]["while.1"]
    assert module.trips("main", loop) == 5  # 3, 5, 7, 9, 11


def test_portable_text_tells_lengths_and_reduce_scatters():
    text = hlo.portable(TPU)
    assert '"known_trip_count":{"n":"5"}' in text
    assert " reduce-scatter(%input)" in text and " all-reduce(" not in text
    assert hlo.portable(text) == text


def test_collectives_of_a_portable_text():
    from vimoe_jax.parallel.mesh import make_mesh
    from vimoe_jax.plan.collectives import collectives

    mesh = make_mesh({"fsdp": 4}, jax.devices()[:4])
    (found,) = collectives(hlo.portable(TPU), mesh)
    assert (found.kind, found.axes, found.count) == ("reduce-scatter", ("fsdp",), 5)
    assert found.bytes == 16 * 8 * 4
    assert found.sent == 5 * 16 * 8 * 4 * 3 / 4


def test_arrays_in_the_chip_are_no_traffic():
    # In the loop the fusion reads 16·8 and writes 4·8 floats five times; the counter is added to;
    # the copy into the chip only reads.
    traffic = cost.memory_bytes(hlo.Module(TPU))
    assert traffic == 5 * ((16 * 8 + 4 * 8) * 4 + 3 * 4) + 16 * 8 * 4


def convolution(line):
    module = hlo.Module(f"ENTRY %main (a: f32[1], b: f32[1]) -> f32[1] {{\n{line}\n}}\n")
    return cost.flops(module)


def test_batched_products_written_as_convolutions():
    # (8 batches) × (512×64 · 64×32): the batch is a dilated window that meets one element each.
    dilated = """\
  %a = bf16[8,512,64]{2,1,0} parameter(0)
  %b = bf16[8,64,32]{2,1,0} parameter(1)
  ROOT %c = bf16[8,512,32]{2,1,0} convolution(%a, %b), \
window={size=8 stride=7 lhs_dilate=8}, dim_labels=0bf_0io->0bf"""
    assert convolution(dilated) == 2 * 8 * 512 * 64 * 32
    # A contraction over heads too, written as a window over them.
    plain = dilated.replace(", window={size=8 stride=7 lhs_dilate=8}", "").replace(
        "dim_labels=0bf_0io->0bf", "window={size=1}, dim_labels=0bf_0io->0bf"
    )
    assert convolution(plain.replace("bf16[8,64,32]", "bf16[1,64,32]")) == 2 * 8 * 512 * 64 * 32
    # Heads as results: 16 kernels padded by 15 on both sides, each place meets its own.
    heads = """\
  %a = bf16[4,1,64]{2,1,0} parameter(0)
  %b = bf16[16,64,32]{2,1,0} parameter(1)
  ROOT %c = bf16[4,16,32]{2,1,0} convolution(%a, %b), \
window={size=16 pad=15_15 rhs_reversal=1}, dim_labels=b0f_0io->b0f"""
    assert convolution(heads) == 2 * 4 * 16 * 64 * 32


@pytest.fixture(scope="module")
def scan():
    """Twelve layers in a scan, as one device's program."""

    def f(w, x):
        return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, w)[0]

    w, x = jnp.zeros((12, 64, 64)), jnp.zeros((32, 64))
    return hlo.Module(jax.jit(f).lower(w, x).compile().as_text())


def test_products_in_a_scan_count_as_often_as_they_run(scan):
    assert cost.flops(scan) == 12 * 2 * 32 * 64 * 64


def test_a_scan_reads_a_slice_of_its_stack_each_time(scan):
    read_once = 12 * 64 * 64 * 4
    # Copied on entry, sliced, read; not the whole stack in each of twelve rounds.
    assert read_once <= cost.memory_bytes(scan) < 6 * read_once
