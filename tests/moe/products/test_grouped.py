"""Grouped products against one product a row, and whom the package trusts to compute them."""

import functools
import warnings

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.moe.products import kernels
from vimoe_jax.moe import dispatch
from vimoe_jax.moe.experts import Experts
from vimoe_jax.moe.products import choice, grouped, hopper, proof
from vimoe_jax.moe.products.check import check
from vimoe_jax.moe.products.choice import tile_rows
from vimoe_jax.moe.products.findings import call_outside_traces
from vimoe_jax.moe.products.segments import Segments, num_rows
from vimoe_jax.moe.routers.top_k import top_k

D, F = 5, 6
TILE = 8
COUNTS = st.lists(st.sampled_from([0, 0, 1, 7, 8, 9, 40]), min_size=4, max_size=4)


# --- the layout --------------------------------------------------------------------------------


@hypothesis.given(
    num=st.sampled_from([1, 5, 300]),
    num_experts=st.sampled_from([1, 7]),
    tile=st.sampled_from([8, 128]),
    cuts=st.lists(st.floats(0, 1), min_size=7, max_size=7),
)
@hypothesis.settings(deadline=None, max_examples=100)
def test_segments_own_whole_tiles_one_after_the_other(num, num_experts, tile, cuts):
    # A random split of the choices, or of some of them.
    ends = np.sort(np.rint(np.asarray(cuts[:num_experts]) * num)).astype(np.int32)
    counts = np.diff(ends, prepend=0)
    rows = num_rows(num, num_experts, tile)  # always suffices
    sizes = -(-counts // tile) * tile
    assert rows % tile == 0 and sizes.sum() <= rows
    s, owned = jax.tree.map(np.asarray, segments(rows, tile)(counts))
    np.testing.assert_array_equal(s.sizes, sizes)
    np.testing.assert_array_equal(s.starts, np.cumsum(sizes) - sizes)
    assert s.used.tolist() == [sizes.sum() // tile]
    owner = np.repeat(np.arange(num_experts), sizes // tile)
    np.testing.assert_array_equal(s.expert, np.pad(owner, (0, rows // tile - len(owner))))
    np.testing.assert_array_equal(owned, np.arange(rows) < sizes.sum())


@functools.cache
def segments(rows, tile):
    def f(counts):
        s = Segments.create(counts, rows, tile)
        return s, s.owned()

    return jax.jit(f)


@hypothesis.given(
    counts=st.lists(st.integers(0, 300), min_size=1, max_size=20), tile=st.integers(1, 130)
)
def test_num_rows_always_suffices(counts, tile):
    needed = sum(-(-c // tile) * tile for c in counts)
    assert needed <= num_rows(sum(counts), len(counts), tile)


@hypothesis.given(choices=st.integers(1, 1 << 20), num_experts=st.integers(1, 512))
def test_portable_tiles_are_of_few_sizes(choices, num_experts):
    tile = tile_rows(choices, num_experts, "portable")
    assert tile in (8, 16, 32, 64, 144)  # on a CPU


# --- values and gradients ----------------------------------------------------------------------


def row_by_row(x, w, d_out, owner):
    """The product and its gradients in float64; unowned rows (-1) are left out."""
    x, w, d_out = (np.asarray(a, np.float64) for a in (x, w, d_out))
    out, d_x, d_w = np.zeros((len(x), w.shape[2])), np.zeros_like(x), np.zeros_like(w)
    for r, e in enumerate(owner):
        if e >= 0:
            out[r], d_x[r] = x[r] @ w[e], w[e] @ d_out[r]
            d_w[e] += np.outer(x[r], d_out[r])
    return out, d_x, d_w


@functools.cache
def matmul(rows, tile):
    def f(x, w, counts, d_out):
        s = Segments.create(counts, rows, tile)
        out, vjp = jax.vjp(lambda x, w: grouped.matmul(x, w, s, "portable"), x, w)
        return out, *vjp(d_out)

    return jax.jit(f)


@hypothesis.given(
    seed=st.integers(0, 10_000),
    counts=COUNTS,
    where_padding_is_zero=st.sampled_from(["x", "d_out"]),
    room=st.sampled_from([0, 3]),
)
@hypothesis.settings(deadline=None, max_examples=40)
def test_matmul_is_a_product_a_row(seed, counts, where_padding_is_zero, room):
    rng = np.random.default_rng(seed)
    rows = (4 * 5 + room) * TILE  # room for four experts of 40 rows
    w = rng.normal(size=(4, D, F)).astype(np.float32)
    x = rng.normal(size=(rows, D)).astype(np.float32)
    d_out = rng.normal(size=(rows, F)).astype(np.float32)
    owner, padding = np.full(rows, -1), np.zeros(rows, bool)
    start = 0
    for e, count in enumerate(counts):
        owner[start : start + count] = e
        end = start + -(-count // TILE) * TILE
        padding[start + count : end] = True
        start = end
    # Rows of padding, and rows of nobody: anything finite in one of the two, zero in the other.
    padding[start:] = True
    x[padding] *= 1e4
    d_out[padding] *= 1e4
    (x if where_padding_is_zero == "x" else d_out)[padding] = 0
    got = matmul(rows, TILE)(x, w, np.asarray(counts, np.int32), d_out)
    want = row_by_row(x, w, d_out, owner)
    for got_rows, want_rows in zip(got[:2], want[:2], strict=True):
        np.testing.assert_allclose(
            np.asarray(got_rows)[owner >= 0], want_rows[owner >= 0], atol=1e-5, rtol=1e-5
        )
    np.testing.assert_allclose(got[2], want[2], atol=1e-5, rtol=1e-5)
    assert not np.any(np.asarray(got[2])[np.asarray(counts) == 0])


@pytest.mark.parametrize("giant", [0, 3])
def test_one_giant_expert(giant):
    rng = np.random.default_rng(giant)
    counts = np.zeros(4, np.int32)
    counts[giant] = 1000
    rows = num_rows(1000, 4, 128)
    x, d_out = rng.normal(size=(rows, D)), rng.normal(size=(rows, F))
    x[1000:] = 0
    w = rng.normal(size=(4, D, F))
    args = [a.astype(np.float32) for a in (x, w, d_out)]
    got = matmul(rows, 128)(*args[:2], counts, args[2])
    want = row_by_row(*args, np.where(np.arange(rows) < 1000, giant, -1))
    for a, b in zip(got[:2], want[:2], strict=True):
        np.testing.assert_allclose(a[:1000], b[:1000], atol=1e-5, rtol=1e-5)
    # A sum of 1000 products in float32: relative to the summands, not to what is left of them.
    bound = np.abs(args[0][:1000]).T @ np.abs(args[2][:1000])
    assert (np.abs(got[2][giant] - want[2][giant]) <= 1e-5 * bound).all()
    assert not np.any(np.delete(np.asarray(got[2]), giant, 0))


def test_more_tiles_than_are_multiplied_at_once():
    """So many tiles of so large matrices that the portable path takes them in several steps."""
    counts, width, hidden = np.array([0, 1500, 3, 0, 600, 1]), 256, 512
    rows = num_rows(int(counts.sum()), len(counts), TILE)
    rng = np.random.default_rng(0)
    x, d_out = rng.normal(size=(rows, width)), rng.normal(size=(rows, hidden))
    w = rng.normal(size=(len(counts), width, hidden))
    args = [a.astype(np.float32) for a in (x, w, d_out)]
    owner, start = np.full(rows, -1), 0
    for e, count in enumerate(counts):
        owner[start : start + count] = e
        start += -(-count // TILE) * TILE
    args[0][owner < 0] = 0
    args[2][owner < 0] *= 1e4
    got = [np.asarray(a) for a in matmul(rows, TILE)(*args[:2], counts.astype(np.int32), args[2])]
    for e in range(len(counts)):
        mine = owner == e
        x, w, d_out = (a.astype(np.float64) for a in (args[0][mine], args[1][e], args[2][mine]))
        products = (got[0][mine], x, w), (got[1][mine], d_out, w.T), (got[2][e], x.T, d_out)
        for found, a, b in products:
            # Sums of hundreds of products: relative to these, not to what is left of them.
            assert (np.abs(found - a @ b) <= 1e-5 * (np.abs(a) @ np.abs(b))).all()


@hypothesis.given(seed=st.integers(0, 10_000), counts=COUNTS)
@hypothesis.settings(deadline=None, max_examples=20)
def test_swiglu_is_an_mlp_a_row(seed, counts):
    rng = np.random.default_rng(seed)
    rows = 20 * TILE
    w_in, w_out = rng.normal(size=(4, D, 2, F)) / 2, rng.normal(size=(4, F, D)) / 2
    x, d_out = rng.normal(size=(2, rows, D))
    owner, start = np.full(rows, -1), 0
    for e, count in enumerate(counts):
        owner[start : start + count] = e
        start += -(-count // TILE) * TILE
    x[owner < 0] = d_out[owner < 0] = 0
    args = [a.astype(np.float32) for a in (x, w_in, w_out, d_out)]
    results = _swiglu(*args, np.asarray(counts, np.int32), owner)
    for got, want in zip(*results, strict=True):
        np.testing.assert_allclose(got, want, atol=1e-5, rtol=1e-5)


@jax.jit
def _swiglu(x, w_in, w_out, d_out, counts, owner):
    s = Segments.create(counts, x.shape[0], TILE)

    def each(x, w_in, w_out):
        h = jnp.einsum("rd,edif->reif", x, w_in, precision="highest")
        h = jax.nn.silu(h[:, :, 0]) * h[:, :, 1]
        mine = jax.nn.one_hot(owner, 4)
        return jnp.einsum("re,ref,efo->ro", mine, h, w_out, precision="highest")

    def both(f):
        y, vjp = jax.vjp(f, x, w_in, w_out)
        return y, *vjp(d_out)

    return both(lambda *args: grouped.swiglu(*args, s, "portable")), both(each)


# --- whom to trust -----------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def _forget():
    yield
    kernels.clear()


def test_the_portable_path_passes_its_own_check():
    assert check("portable", jnp.float32) is None


def test_a_check_that_was_passed_holds_for_the_next_process(monkeypatch, tmp_path):
    monkeypatch.setenv("VIMOE_CACHE", str(tmp_path))
    verdicts = iter(["dx off by 0.3", None, "not asked for"])

    def check(name, dtype):
        return next(verdicts)

    with pytest.warns(UserWarning, match="dx off"):
        assert not proof.passes_check("hopper", jnp.bfloat16, check)  # who failed is checked again
    assert proof.passes_check("hopper", jnp.bfloat16, check)
    assert proof.passes_check("hopper", jnp.bfloat16, check)
    with pytest.warns(UserWarning, match="not asked for"):
        assert not proof.passes_check("hopper", jnp.float16, check)


@pytest.mark.parametrize("change", ["file", "version"])
def test_a_check_is_made_again_when_its_record_is_no_good(monkeypatch, tmp_path, change):
    monkeypatch.setenv("VIMOE_CACHE", str(tmp_path))
    asked = []

    def check(name, dtype):
        asked.append((name, dtype))

    assert proof.passes_check("hopper", jnp.bfloat16, check)
    if change == "file":
        (file,) = tmp_path.iterdir()
        file.write_text(file.read_text()[:-9])
    else:
        monkeypatch.setattr(proof, "_versions", lambda: "another")
    assert proof.passes_check("hopper", jnp.bfloat16, check)
    assert len(asked) == 2


def test_without_an_accelerator_the_path_is_portable():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert {choice.backend(jnp.dtype(t)) for t in ("float32", "bfloat16")} == {"portable"}


def test_right_kernels_are_trusted_for_16_bits_only(monkeypatch):
    with kernels.stand_in(monkeypatch), warnings.catch_warnings():
        warnings.simplefilter("error")
        assert choice.backend(jnp.dtype("bfloat16")) == "hopper"
        assert choice.backend(jnp.dtype("float32")) == "portable"
        assert tile_rows(64, 4, "hopper") == 128
        assert choice.backend(jnp.bfloat16, 256, 384) == "hopper"
        assert choice.backend(jnp.bfloat16, 256, 100) == "portable"


def garbage_without_rows(lhs, rhs, sizes, *, cut=None):
    """What published kernels have done: an expert without rows keeps what was in memory."""
    out = kernels.weights(lhs, rhs, sizes)
    return jnp.where((sizes > 0)[:, None, None], out, 1e-3)


def nan_without_rows(lhs, rhs, sizes, *, cut=None):
    out = kernels.weights(lhs, rhs, sizes)
    return jnp.where((sizes > 0)[:, None, None], out, jnp.nan)


def first_tile_only(lhs, rhs, sizes, *, cut=None):
    starts = jnp.cumsum(sizes) - sizes
    place = jnp.arange(lhs.shape[0])[:, None]
    first = ((place >= starts) & (place < starts + 128)).any(-1, keepdims=True)
    return kernels.weights(jnp.where(first, lhs, 0), rhs, sizes)


def of_the_first_expert(lhs, rhs, expert, used, **options):
    return kernels.rows(lhs, rhs, 0 * expert, used, **options)


def never_transposed(lhs, rhs, expert, used, *, transposed=False, cut=None):
    out = kernels.rows(lhs, rhs, expert, used, transposed=transposed)
    return 2 * out if transposed else out


def without_silu(lhs, rhs, expert, used, **options):
    both, _ = kernels.gated(lhs, rhs, expert, used, **options)
    half = both.shape[1] // 2
    return both, both[:, :half] * both[:, half:]


def swapped(*args, **options):
    d_both = kernels.gated_backward(*args, **options)
    return jnp.roll(d_both, d_both.shape[1] // 2, 1)


def refused(*args, **options):
    raise RuntimeError("this compiler is too old\nand says so at length")


@pytest.mark.parametrize(
    ("changed", "complaint"),
    [
        ({"weights": garbage_without_rows}, "of an expert without rows is not zero"),
        ({"weights": nan_without_rows}, "dw_in off by nan"),
        ({"weights": first_tile_only}, "dw_in off by"),
        ({"rows": of_the_first_expert}, r"y off by [0-9.]+\)"),
        ({"rows": never_transposed}, "dx off by"),
        ({"gated": without_silu}, r"y off by .* \(fused\)"),
        ({"gated_backward": swapped}, r"dx off by .* \(fused\)"),
        ({"rows": refused}, r"RuntimeError: this compiler is too old\)"),
    ],
    ids=lambda a: getattr(next(iter(a.values())), "__name__", "") if isinstance(a, dict) else "",
)
def test_wrong_kernels_are_refused_with_a_warning(monkeypatch, changed, complaint):
    with kernels.stand_in(monkeypatch, **changed):
        with pytest.warns(UserWarning, match=f"hopper kernels fail.*{complaint}.*portable"):
            assert choice.backend(jnp.dtype("bfloat16")) == "portable"
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # once is enough
            assert choice.backend(jnp.dtype("bfloat16")) == "portable"


def test_refused_kernels_are_not_run(monkeypatch):
    x = jax.random.normal(jax.random.key(0), (256, 128), jnp.bfloat16)
    w = jax.random.normal(jax.random.key(1), (2, 128, 128), jnp.bfloat16)
    s = Segments.create(jnp.asarray([0, 130]), 256, 128)
    with kernels.stand_in(monkeypatch, rows=refused), pytest.warns(UserWarning):
        name = choice.backend(x.dtype, *w.shape[1:])
        got = jax.jit(lambda x, w: grouped.matmul(x, w, s, name))(x, w)
    want = x.astype(jnp.float32) @ w[1].astype(jnp.float32)
    np.testing.assert_allclose(got.astype(jnp.float32), want, rtol=2**-8, atol=1e-2)


def test_traces_belong_to_the_thread_outside():
    @jax.jit
    def f(x):
        assert call_outside_traces(lambda: float(jnp.ones(3).sum())) == 3.0
        return x + 1

    assert float(f(1.0)) == 2


# --- with kernels --------------------------------------------------------------------------------


def far(got, want):
    """The largest distance of two trees' leaves, relative to the second's norm."""

    def one(a, b):
        a, b = (np.asarray(t, np.float32) for t in (a, b))
        return np.linalg.norm(a - b) / max(np.linalg.norm(b), 1e-30)

    return np.max(jax.tree.leaves(jax.tree.map(one, got, want)))  # NaN if any is


@pytest.mark.parametrize(
    ("activation", "bias", "hidden", "passes"),
    [
        ("swiglu", False, 256, ["few", "sorted"]),  # through the fused kernels
        ("swiglu", False, 192, []),  # kernels fit the first product only
        ("swiglu", True, 256, []),
        ("gelu", True, 128, []),
    ],
)
def test_the_layer_on_kernels_is_the_layer_in_float32(
    monkeypatch, activation, bias, hidden, passes
):
    """The way through the kernels: sorting, 128 rows a tile; what they leave unwritten is NaN."""
    shape, k, capacity = (2, 40, 5), 2, 12
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(*shape[:2], 128)), jnp.bfloat16)
    # Too many for expert 0, none for the last.
    logits = rng.normal(size=shape) + np.array([3, 0, 0, 0, -99])
    gates = jax.nn.softmax(jnp.asarray(logits, jnp.float32))
    valid = jnp.asarray(rng.random(shape[:2]) < 0.8)
    target = jnp.asarray(rng.normal(size=x.shape), jnp.float32)

    def results(name, dtype):
        options = dict(activation=activation, bias=bias, dtype=dtype, rngs=nnx.Rngs(0))
        graph, state = nnx.split(Experts(5, 128, hidden, 128, **options))
        # In both the same numbers, which 16 bits can hold.
        state = jax.tree.map(lambda a: a.astype(jnp.bfloat16).astype(jnp.float32), state)

        def loss(x, gates, state):
            a = top_k(gates, k, capacity, valid=valid)
            experts = nnx.merge(graph, state)
            y = dispatch.make(name, a, backend=experts.backend()).run(experts, x)
            return jnp.sum(y.astype(jnp.float32) * target), y

        args = (x.astype(dtype), gates, state)
        # Undifferentiated, few tokens may go another way.
        value = jax.jit(lambda *args: loss(*args)[1])(*args) if passes else None
        return value, jax.jit(jax.grad(loss, (0, 1, 2), has_aux=True))(*args)

    value, (gradients, y) = results("einsum", jnp.float32)
    taken = []

    def gated(*args, shared=False, **options):
        taken.append("few" if shared else "sorted")
        return kernels.gated(*args, shared=shared, **options)

    with kernels.stand_in(monkeypatch, gated=gated):
        assert {choice.backend(t) for t in (jnp.bfloat16, jnp.dtype("bfloat16"))} == {"hopper"}
        taken.clear()
        got_value, (got_gradients, got_y) = results("gather", jnp.bfloat16)
    assert taken == passes
    assert far((got_value, got_y), (value, y)) < 0.02
    assert far(got_gradients, gradients) < 0.02
    assert not any(np.any(got_gradients[2][n][...][4]) for n in got_gradients[2])


@hypothesis.given(seed=st.integers(0, 1000), share=st.sampled_from([0.0, 0.1, 0.5, 1.0]))
@hypothesis.settings(
    deadline=None,
    max_examples=15,
    suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture],
)
def test_few_rows_are_a_weighted_sum(monkeypatch, seed, share):
    rng = np.random.default_rng(seed)
    x, w_in, w_out = _few_weights(seed % 3)
    weight = np.float32(rng.random((9, 6)) * (rng.random((9, 6)) < share))
    weight[:, rng.integers(0, 6)] = 0
    with kernels.stand_in(monkeypatch):
        y = _few(x, w_in, w_out, weight)
    want = few_reference(x, w_in, w_out, weight)
    assert np.linalg.norm(np.asarray(y, np.float32) - want) <= 0.01 * np.linalg.norm(want)


@functools.cache
def _few_weights(seed):
    keys = jax.random.split(jax.random.key(seed), 3)
    shapes = ((9, 128), (6, 128, 2, 128), (6, 128, 256))
    return [jax.random.normal(k, s, jnp.bfloat16) / 8 for k, s in zip(keys, shapes, strict=True)]


_few = jax.jit(lambda *args: grouped.few_rows(*args, "hopper"))


def few_reference(x, w_in, w_out, weight):
    """Every expert on every row, in float64."""
    x, w_in, w_out = (np.asarray(a, np.float64) for a in (x, w_in, w_out))
    h = np.einsum("td,edif->itef", x, w_in)
    h = h[0] / (1 + np.exp(-h[0])) * h[1]
    return np.einsum("te,tef,efo->to", np.asarray(weight, np.float64), h, w_out)


def test_few_rows_are_few_and_need_kernels(monkeypatch):
    x, w_in, w_out = _few_weights(0)
    assert grouped.few_rows(x, w_in, w_out, jnp.ones((9, 6)), "portable") is None
    rows = jnp.ones((129, 128))
    assert grouped.few_rows(rows, w_in, w_out, jnp.ones((129, 6)), "hopper") is None
    monkeypatch.setattr(choice, "_backend", lambda _: "hopper")
    assert choice.backend(jnp.bfloat16, 128, 256, 100) == "portable"


def test_stand_ins_take_the_kernels_arguments():
    import inspect

    for name in kernels.NAMES:
        ours, theirs = (inspect.signature(getattr(m, name)) for m in (kernels, hopper))
        assert len(ours.parameters) == len(theirs.parameters)
        keywords = [p.name for p in theirs.parameters.values() if p.kind == p.KEYWORD_ONLY]
        assert [p.name for p in ours.parameters.values() if p.kind == p.KEYWORD_ONLY] == keywords
