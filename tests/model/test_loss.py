"""The vocabulary loss: its gradients against the obvious formula, its memory, meshes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vimoe_jax.model import loss as loss_lib
from vimoe_jax.model.loss import cross_entropy
from vimoe_jax.parallel import rules
from vimoe_jax.parallel.mesh import make_mesh

B, S, V, D = 5, 7, 11, 8


def example(b=B, s=S, v=V, d=D, seed=0):
    rng = np.random.default_rng(seed)
    return (
        jnp.asarray(rng.normal(size=(b, s, d)), jnp.float32),
        jnp.asarray(rng.normal(size=(v, d)), jnp.float32),
        jnp.asarray(rng.integers(0, v, (b, s)), jnp.int32),
        jnp.asarray(rng.integers(0, 3, (b, s)) / 2, jnp.float32),
    )


def plain(hidden, matrix, targets, weights):
    p = jax.nn.log_softmax(hidden @ matrix.T)
    return -jnp.sum(jnp.take_along_axis(p, targets[..., None], -1)[..., 0] * weights)


def scaled(loss, targets, weights):
    """A loss with a cotangent that is not 1, and its gradients by `hidden` and `matrix`."""
    return jax.value_and_grad(lambda h, m: 0.3 * loss(h, m, targets, weights), (0, 1))


def ours(*arguments):
    return cross_entropy(*arguments).loss


# All at once, three places of all rows, one place of all rows, of two rows, one token.
LIMITS = [1 << 26, 3 * B * V, B * V, 2 * V, 1]


@pytest.mark.parametrize("limit", LIMITS)
def test_value_and_gradients_equal_the_plain_ones(monkeypatch, limit):
    monkeypatch.setattr(loss_lib, "_MAX_LOGITS", limit)
    hidden, matrix, *rest = example()
    value, grads = jax.jit(scaled(ours, *rest))(hidden, matrix)
    expected, expected_grads = scaled(plain, *rest)(hidden, matrix)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    for a, b in zip(grads, expected_grads, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("limit", LIMITS)
def test_sums_do_not_depend_on_chunks_or_differentiation(monkeypatch, limit):
    monkeypatch.setattr(loss_lib, "_MAX_LOGITS", limit)
    hidden, matrix, targets, weights = arguments = example()
    alone = jax.jit(cross_entropy)(*arguments)
    along, _ = jax.vjp(lambda h, m: cross_entropy(h, m, targets, weights), hidden, matrix)
    right = (jnp.argmax(hidden @ matrix.T, -1) == targets) * weights
    for sums in (alone, along):
        np.testing.assert_allclose(sums.loss, plain(*arguments), rtol=1e-5)
        assert (float(sums.correct), float(sums.weight)) == (float(right.sum()), weights.sum())


def test_a_tie_counts_as_right():
    hidden, weights = jnp.ones((1, 4, D)), jnp.ones((1, 4))
    matrix = jnp.ones((3, D)).at[2].set(0)
    sums = cross_entropy(hidden, matrix, jnp.array([[0, 1, 2, 1]]), weights)
    assert float(sums.correct) == 3


def test_only_the_loss_has_a_gradient():
    hidden, matrix, targets, weights = example()

    def others(hidden, matrix, weights):
        sums = cross_entropy(hidden, matrix, targets, weights)
        return sums.correct + sums.weight

    for g in jax.grad(others, (0, 1, 2))(hidden, matrix, weights):
        assert not np.any(g)
    assert not np.any(jax.grad(lambda w: ours(hidden, matrix, targets, w))(weights))


@pytest.mark.parametrize("limit", [1 << 26, B * V])
def test_no_weight_gives_zeros(monkeypatch, limit):
    monkeypatch.setattr(loss_lib, "_MAX_LOGITS", limit)
    hidden, matrix, targets, weights = example()
    value, grads = scaled(ours, targets, jnp.zeros_like(weights))(hidden, matrix)
    assert float(value) == 0
    assert not any(np.any(g) for g in grads)


@pytest.mark.parametrize("limit", [1 << 26, 3 * B * 300])
def test_bfloat16_is_the_exact_gradient_up_to_rounding(monkeypatch, limit):
    """Against float64 on the same (rounded) inputs; the master weights' gradient is float32."""
    monkeypatch.setattr(loss_lib, "_MAX_LOGITS", limit)
    hidden, matrix, targets, weights = example(v=300, d=32)
    hidden = hidden.astype(jnp.bfloat16)
    value, (d_hidden, d_matrix) = jax.jit(scaled(ours, targets, weights))(hidden, matrix)
    assert (value.dtype, d_hidden.dtype, d_matrix.dtype) == (jnp.float32, jnp.bfloat16, jnp.float32)

    h = np.asarray(hidden, np.float64)
    m = np.asarray(matrix.astype(jnp.bfloat16), np.float64)
    logits = h @ m.T
    p = np.exp(logits - logits.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    d = 0.3 * (p - np.eye(300)[np.asarray(targets)]) * np.asarray(weights)[..., None]
    hit = np.take_along_axis(p, np.asarray(targets)[..., None], -1)[..., 0]
    np.testing.assert_allclose(value, -0.3 * np.sum(np.log(hit) * np.asarray(weights)), rtol=1e-5)
    exact_matrix = np.einsum("bsv,bsd->vd", d, h)
    for got, exact in ((d_hidden, d @ m), (d_matrix, exact_matrix)):
        error = np.linalg.norm(np.asarray(got, np.float64) - exact) / np.linalg.norm(exact)
        assert error < 2**-8, error  # one rounding to 8 bits is 2^-9 at most, and rarely that


def equations(jaxpr):
    """All equations, of inner jaxprs as well."""
    for equation in jaxpr.eqns:
        yield equation
        for value in jax.tree.leaves(equation.params, is_leaf=lambda p: hasattr(p, "jaxpr")):
            if hasattr(value, "jaxpr"):
                yield from equations(value.jaxpr)
            elif hasattr(value, "eqns"):
                yield from equations(value)


def products(function, *arguments):
    jaxpr = jax.make_jaxpr(function)(*arguments).jaxpr
    return sum(e.primitive.name == "dot_general" for e in equations(jaxpr))


@pytest.mark.parametrize("limit", [1 << 26, B * V])
def test_one_product_for_the_loss_and_three_with_gradients(monkeypatch, limit):
    monkeypatch.setattr(loss_lib, "_MAX_LOGITS", limit)
    hidden, matrix, *rest = example()
    assert products(ours, hidden, matrix, *rest) == 1
    assert products(scaled(ours, *rest), hidden, matrix) == 3


def test_logits_stay_below_the_limit(monkeypatch):
    b, s, v, d, limit = 8, 256, 32768, 16, 1 << 21
    monkeypatch.setattr(loss_lib, "_MAX_LOGITS", limit)
    shapes = [jax.ShapeDtypeStruct(x, jnp.float32) for x in ((b, s, d), (v, d))]
    ints = jax.ShapeDtypeStruct((b, s), jnp.int32)
    floats = jax.ShapeDtypeStruct((b, s), jnp.float32)

    def both(hidden, matrix, targets, weights):
        return scaled(ours, targets, weights)(hidden, matrix)

    arguments = (*shapes, ints, floats)
    for function in (both, ours):
        jaxpr = jax.make_jaxpr(function)(*arguments).jaxpr
        sizes = [out.aval.size for e in equations(jaxpr) for out in e.outvars]
        assert max(sizes) == limit  # a chunk's logits, nothing larger
        temporary = jax.jit(function).lower(*arguments).compile().memory_analysis()
        # Logits and what is made of them, plus the gradient of the matrix and its accumulator.
        assert temporary.temp_size_in_bytes < 4 * (3 * limit + 2 * v * d)

    saved = jax.eval_shape(
        lambda *a: jax.vjp(lambda h, m: ours(h, m, *a[2:]), *a[:2])[1], *arguments
    )
    assert sum(x.size for x in jax.tree.leaves(saved)) <= b * s * d + v * d


@pytest.mark.parametrize("limit", [1 << 26, 2 * 24 * 5, 24], ids=str)
@pytest.mark.parametrize(
    "sizes",
    [{"data": 8}, {"data": 2, "tensor": 4}, {"data": 2, "fsdp": 2, "tensor": 2}, {"tensor": 8}],
    ids=str,
)
def test_every_mesh_gives_the_same_numbers(monkeypatch, sizes, limit):
    monkeypatch.setattr(loss_lib, "_MAX_LOGITS", limit)
    arguments = example(16, 25, 24)
    expected = jax.jit(with_mesh(None))(*arguments)
    mesh = make_mesh(sizes, jax.devices()[:8])
    got = on_mesh(mesh, arguments)(*arguments)
    assert got[1][1].sharding == rules.sharding(("vocab", "embed"), (24, D), mesh, rules.KEPT)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5, rtol=1e-5), got, expected)


def with_mesh(mesh):
    def function(hidden, matrix, targets, weights):
        with rules.use_mesh(mesh):
            return scaled(ours, targets, weights)(hidden, matrix)

    return function


def on_mesh(mesh, arguments):
    """Compiled, with rows split over the token axes and the matrix as the rules say."""
    hidden, matrix, *_ = arguments
    rows = functools.partial(rules.sharding, mesh=mesh)
    places = [
        rows(("batch", None, None), hidden.shape),
        rows(("vocab", "embed"), matrix.shape, over=rules.KEPT),
        *[rows(("batch", None), x.shape) for x in arguments[2:]],
    ]
    out = (None, tuple(places[:2]))
    return jax.jit(with_mesh(mesh), in_shardings=places, out_shardings=out)


@pytest.mark.parametrize("sizes", [{"data": 8}, {"data": 2, "fsdp": 2, "tensor": 2}], ids=str)
def test_each_device_works_on_its_own_share(monkeypatch, sizes):
    b, s, v, d, limit = 32, 64, 4096, 8, 1 << 18
    monkeypatch.setattr(loss_lib, "_MAX_LOGITS", limit)
    arguments = (
        jax.ShapeDtypeStruct((b, s, d), jnp.float32),
        jax.ShapeDtypeStruct((v, d), jnp.float32),
        jax.ShapeDtypeStruct((b, s), jnp.int32),
        jax.ShapeDtypeStruct((b, s), jnp.float32),
    )
    mesh = make_mesh(sizes, jax.devices()[:8])
    compiled = on_mesh(mesh, arguments).lower(*arguments).compile()
    # A chunk's logits and what is made of them, and some copies of the matrix: not all 8 devices'.
    share = 4 * (3 * limit + 6 * v * d)
    assert compiled.memory_analysis().temp_size_in_bytes < share < 4 * 8 * limit
