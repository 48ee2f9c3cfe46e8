"""The Hopper kernels without a GPU: in Pallas' interpreter, and lowered as far as a CPU can."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.experimental.pallas import mosaic_gpu as plgpu

from benchmarks.moe_layer import SHAPES
from tests.moe.products import kernels
from tests.moe.products.test_grouped import few_reference
from vimoe_jax.moe.products import grouped, hopper, mosaic, segments, tiles
from vimoe_jax.moe.products.check import check
from vimoe_jax.moe.products.hopper import ROWS, Tiles

BF16 = jnp.bfloat16

# --- lowering ----------------------------------------------------------------------------------


def lower(f, *shapes):
    """As far as the compiler for GPUs goes without one: layouts, and how much shared memory."""
    args = [
        jax.ShapeDtypeStruct(s, jnp.int32 if len(s) == 1 else BF16) for s in shapes
    ]  # tables have one axis, operands have more
    return jax.jit(f).trace(*args).lower(lowering_platforms=("cuda",))


def calls(rows, width, hidden, experts):
    """Every product of a SwiGLU layer: what it calls, the kernel's name for its tiles, shapes."""
    table, one = (rows // ROWS,), (1,)
    x, d_both, h = (rows, width), (rows, 2 * hidden), (rows, hidden)
    w_in, flat = (experts, width, 2, hidden), (experts, width, 2 * hidden)
    w_out, sizes = (experts, hidden, width), (experts,)
    back = functools.partial(hopper.rows, transposed=True)
    return {
        "gated": (hopper.gated, "gated", x, w_in, table, one),
        "out": (hopper.rows, "rows", h, w_out, table, one),
        "in": (hopper.rows, "rows", x, flat, table, one),
        "gated_backward": (hopper.gated_backward, "gated_backward", x, w_out, d_both, table, one),
        "d_hidden": (back, "rows_transposed", x, w_out, table, one),
        "d_x": (back, "rows_transposed", d_both, flat, table, one),
        "d_w_in": (hopper.weights, "weights", x, d_both, sizes),
        "d_w_out": (hopper.weights, "weights", h, x, sizes),
    }


LAYERS = {
    **{
        n: (s["tokens"] * s["k"], s["width"], s["hidden"], s["experts"])
        for n, s in SHAPES.items()
        if s["width"] % 128 == 0 and s["hidden"] % 128 == 0
    },
    "growth": (65536, 1024, 2048, 128),
    "check": (1152, 256, 384, 7),
}


@pytest.mark.parametrize("product", calls(ROWS, ROWS, ROWS, 1))
@pytest.mark.parametrize("layer", LAYERS)
def test_kernels_lower_with_default_tiles(layer, product):
    choices, width, hidden, experts = LAYERS[layer]
    rows = segments.num_rows(choices, experts, ROWS)
    f, kernel, *shapes = calls(rows, width, hidden, experts)[product]
    cut = tiles.candidates(kernel, *shapes[:2])[0]
    assert "mosaic_gpu" in lower(functools.partial(f, cut=cut), *shapes).as_text()


def test_few_rows_lower():
    for rows, experts in ((64, 32), (1, 8), (128, 128)):
        text = lower(
            lambda x, w_in, w_out, weight: grouped.few_rows(
                x, w_in, w_out, weight.astype(jnp.float32), "hopper"
            ),
            (rows, 1024),
            (experts, 1024, 2, 2048),
            (experts, 2048, 1024),
            (rows, experts),
        ).as_text()
        assert len(re.findall(r"stablehlo.custom_call @mosaic_gpu", text)) == 2


def test_lowering_notices_too_much_shared_memory():
    f, _, *shapes = calls(1024, 1024, 2048, 8)["out"]
    with pytest.raises(ValueError, match="exceeds available shared memory"):
        lower(functools.partial(f, cut=Tiles(stages=8)), *shapes)


# --- interpreting ------------------------------------------------------------------------------

interpreted = pytest.mark.skipif(
    not hasattr(plgpu, "force_gpu_interpret_mode"),
    reason=f"the GPU interpreter of JAX {jax.__version__} cannot transpose blocks of shared memory",
)


@pytest.fixture(autouse=True)
def _three_multiprocessors(monkeypatch):
    monkeypatch.setattr(mosaic, "multiprocessors", lambda: 3)


def alone(f):
    """`f`, with nothing else running: the interpreter calls back into JAX, and would wait for it
    for ever while another thread has work for the same device."""

    def wrapped(*args, **options):
        return jax.block_until_ready(f(*jax.block_until_ready(args), **options))

    return wrapped


def interpreter(**options):
    """What is unwritten is NaN in it; reading or writing out of bounds raises."""
    return plgpu.force_gpu_interpret_mode(plgpu.InterpretGPUParams(**options))


EXPERTS, TILES = 3, 4
LAYOUTS = {  # row tiles of each expert
    "empty": (1, 0, 2),
    "nothing": (0, 0, 0),
    "giant": (0, 4, 0),
    "all": (2, 1, 1),
}
# width, hidden: steps of the contraction that the stages do not divide (so that every output tile
# fills the pipeline anew), and steps that they do
WIDTHS = {"unchained": (128, 384), "chained": (256, 256)}
# name -> kernel, its operands by name, all its results bound to row tiles?
KERNELS = {
    "rows": ("rows", "x", "w"),
    "rows_transposed": ("rows", "x", "w_transposed"),
    "gated": ("gated", "x", "w_in"),
    "gated_shared": ("gated", "one_tile", "w_in"),
    "gated_backward": ("gated_backward", "x", "w_transposed", "both"),
    "weights": ("weights", "x", "h"),
}
OPTIONS = {"rows_transposed": {"transposed": True}, "gated_shared": {"shared": True}}


@functools.cache
def operands(width, hidden):
    shapes = {
        "x": (TILES * ROWS, width),
        "one_tile": (ROWS, width),
        "h": (TILES * ROWS, hidden),
        "both": (TILES * ROWS, 2 * hidden),
        "w": (EXPERTS, width, hidden),
        "w_transposed": (EXPERTS, hidden, width),
        "w_in": (EXPERTS, width, 2, hidden),
    }
    keys = jax.random.split(jax.random.key(0), len(shapes))
    return {
        n: jax.random.normal(k, s, BF16) for k, (n, s) in zip(keys, shapes.items(), strict=True)
    }


def tables(kernel, layout):
    """The kernel's tables: each tile's expert and how many are in use, or each expert's rows."""
    counts = np.asarray(LAYOUTS[layout])
    if kernel == "weights":
        return (jnp.asarray(counts * ROWS, jnp.int32),)
    expert = np.repeat(np.arange(EXPERTS), counts)
    # Behind the last tile in use the table may say anything.
    expert = np.pad(expert, (0, TILES - len(expert)), constant_values=EXPERTS - 1)
    return jnp.asarray(expert, jnp.int32), jnp.asarray([counts.sum()], jnp.int32)


def check_kernel(kernel, width, hidden, layouts, cut=None, **interpreter_options):
    name, *which = KERNELS[kernel]
    options = OPTIONS.get(kernel, {})
    args = [operands(width, hidden)[n] for n in which]
    by = "rows_transposed" if options.get("transposed") else name
    cut = cut or tiles.candidates(by, args[0].shape, args[1].shape)[0]
    rows = TILES * cut.rows
    heights = {TILES * ROWS: rows, ROWS: cut.rows}  # of what has row tiles, and of one
    args = [a[: heights.get(a.shape[0], a.shape[0])] for a in args]
    with interpreter(**interpreter_options):
        # One trace for all layouts.
        f = alone(jax.jit(functools.partial(getattr(hopper, name), cut=cut, **options)))
        for layout in layouts:
            owned = np.arange(rows) < sum(LAYOUTS[layout]) * cut.rows
            # Rows that nobody owns may hold anything.
            mine = [
                jnp.where(owned[:, None], a, jnp.nan) if a.shape[0] == rows else a for a in args
            ]
            got = f(*mine, *tables(kernel, layout))
            exact = [a.astype(jnp.float32) for a in mine]
            want = getattr(kernels, name)(*exact, *tables(kernel, layout), **options)
            if options.get("shared"):
                got, want = got[1:], want[1:]
            jax.tree.map(close_but_for_rounding, got, want)


def close_but_for_rounding(got, want):
    """One rounding to bfloat16; what the reference leaves unwritten is so in both."""
    assert got.dtype == BF16
    got, want = np.asarray(got, np.float32), np.asarray(want)
    scale = np.nan_to_num(np.abs(want)).max(initial=0)
    np.testing.assert_allclose(got, want, rtol=2**-8, atol=1e-5 * scale)


@interpreted
@pytest.mark.parametrize("widths", WIDTHS)
@pytest.mark.parametrize("kernel", KERNELS)
def test_kernels_against_float32(kernel, widths):
    check_kernel(kernel, *WIDTHS[widths], LAYOUTS)


@interpreted
@pytest.mark.parametrize("kernel", KERNELS)
def test_kernels_with_other_tiles(kernel):
    check_kernel(kernel, 256, 256, ["empty", "all"], Tiles(columns=128, stages=2, width=2))


@interpreted
@pytest.mark.parametrize("kernel", ["rows", "gated_shared"])
def test_kernels_for_64_rows(kernel):
    check_kernel(kernel, 256, 256, ["empty", "all"], Tiles(rows=64))


@interpreted
@pytest.mark.parametrize("kernel", KERNELS)
def test_kernels_have_no_races(kernel, capsys):
    check_kernel(kernel, 256, 256, ["empty"], detect_races=True)
    assert "RACE" not in capsys.readouterr().out


@interpreted
def test_races_are_noticed(capsys):
    def body(out, smem):
        wg = lax.axis_index("wg")
        smem[...] = jnp.full((128,), wg, jnp.float32)  # both at once
        plgpu.commit_smem()
        plgpu.copy_smem_to_gmem(smem, out.at[wg])
        plgpu.wait_smem_to_gmem(0)

    racy = plgpu.kernel(
        body,
        out_type=jax.ShapeDtypeStruct((2, 128), jnp.float32),
        num_threads=2,
        thread_name="wg",
        scratch_types=dict(smem=plgpu.SMEM((128,), jnp.float32)),
    )
    with interpreter(detect_races=True):
        alone(jax.jit(racy))()
    assert "RACE DETECTED" in capsys.readouterr().out


@interpreted
@pytest.mark.slow
def test_the_check_passes(monkeypatch):
    for name in kernels.NAMES:
        monkeypatch.setattr(hopper, name, alone(getattr(hopper, name)))
    with interpreter():
        assert check("hopper", BF16) is None


@interpreted
@pytest.mark.parametrize("tokens", [20, 64, 65])
def test_few_rows(tokens):
    keys = jax.random.split(jax.random.key(0), 3)
    shapes = (tokens, 128), (5, 128, 2, 256), (5, 256, 128)
    x, w_in, w_out = (jax.random.normal(k, s, BF16) / 8 for k, s in zip(keys, shapes, strict=True))
    rng = np.random.default_rng(0)
    with interpreter():
        f = alone(jax.jit(lambda *args: grouped.few_rows(*args, "hopper")))
        for met in ([1, 0, 1, 0, 1], [0, 0, 0, 0, 0], [0, 0, 0, 1, 0], [1, 1, 1, 1, 1]):
            weight = np.float32(rng.random((tokens, 5)) * (rng.random((tokens, 5)) < 0.6) * met)
            y = np.asarray(f(x, w_in, w_out, weight), np.float32)
            want = few_reference(x, w_in, w_out, weight)
            assert np.linalg.norm(y - want) <= 0.01 * np.linalg.norm(want)
