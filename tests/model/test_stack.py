"""Scanned stacks: the plan, the order of layers, compile time."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from vimoe_jax.model.stack import Stack, plan, unstack
from vimoe_jax.parallel.parameters import param


@pytest.mark.parametrize(
    ("kinds", "expected"),
    [
        ("DDDD", [("D", 4)]),
        ("DMDMDM", [("DM", 3)]),
        ("DDDDM", [("D", 4), ("M", 1)]),
        ("DMDMDDDDMDM", [("DM", 2), ("D", 3), ("DM", 2)]),
        ("", []),
    ],
)
def test_plan_repeats_units(kinds, expected):
    assert [("".join(unit), n) for unit, n in plan(kinds)] == expected


@pytest.mark.parametrize("kinds", ["DDMDMDDMM", "MMMM", "DMMDMMD"])
def test_plan_spells_the_kinds(kinds):
    assert "".join("".join(unit) * n for unit, n in plan(kinds)) == kinds


class Scale(nnx.Module):
    """x -> x · w, reporting x; kinds differ in their initial weight."""

    def __init__(self, kind, rngs):
        init = jax.nn.initializers.normal(1.0 if kind == "D" else 2.0)
        self.w = param(rngs, init, (3,), (None,))


def apply(layer, x, cache, key):
    return x * layer.w[...], None, x


@pytest.mark.parametrize("remat", ["none", "full"])
@pytest.mark.parametrize("unroll", [1, 2])
def test_runs_layers_in_order(remat, unroll):
    kinds = "DMDMDDD"
    stack = Stack(kinds, Scale, remat=remat, unroll=unroll, rngs=nnx.Rngs(0))
    x = jnp.arange(1.0, 4.0)
    y, _, reports = stack.run(apply, x)
    inputs = unstack(stack.plan, reports)
    weights = []
    for segment, (_, repeats) in zip(stack.segments, stack.plan, strict=True):
        weights += [layer.w[r] for r in range(repeats) for layer in segment]
    assert len(weights) == len(kinds) == len(inputs)
    expected = x
    for w, seen in zip(weights, inputs, strict=True):
        np.testing.assert_allclose(seen, expected, rtol=1e-5)
        expected = expected * w
    np.testing.assert_allclose(y, expected, rtol=1e-5)
    assert len({tuple(np.asarray(w)) for w in weights}) == len(kinds), "layers share a start"
    np.testing.assert_array_equal(stack(apply, x)[2], np.stack(inputs))


def test_reports_are_merged_first_to_last():
    """Only some layers report: two of three in a unit that repeats, and the last one."""
    kinds = "DMNDMNN"

    def report(layer, x, cache, key):
        return x + 1, None, None if layer.kind == "D" else {"seen": x[0]}

    class Layer(Scale):
        def __init__(self, kind, rngs):
            super().__init__(kind, rngs)
            self.kind = kind

    stack = Stack(kinds, Layer, rngs=nnx.Rngs(0))
    merged = stack(report, jnp.zeros(3))[2]
    assert merged["seen"].tolist() == [i for i, kind in enumerate(kinds) if kind != "D"]
    assert Stack("DD", Layer, rngs=nnx.Rngs(0))(report, jnp.zeros(3))[2] is None


def test_each_layer_has_its_own_key():
    stack = Stack("DDM", Scale, rngs=nnx.Rngs(0))

    def noisy(layer, x, cache, key):
        return x, None, jax.random.normal(key, (2,))

    _, _, reports = stack.run(noisy, jnp.ones(3), key=jax.random.key(0))
    draws = [tuple(np.asarray(r)) for r in unstack(stack.plan, reports)]
    assert len(set(draws)) == 3
