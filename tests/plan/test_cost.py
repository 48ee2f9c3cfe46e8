"""Arithmetic and traffic, from the text of compiled programs."""

import jax
import jax.numpy as jnp
import pytest

from tests.plan.test_hlo import TPU
from vimoe_jax.plan import cost, hlo


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
