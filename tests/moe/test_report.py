"""The MoE report: counts by kind, and the fractions that follow from them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vimoe_jax.moe.report import MoEReport, collect

G, M, E, KINDS = 3, 8, 4, 3


def random_choices(seed=0, groups=G):
    """Gates, choices before and after capacity, padding, kinds; as NumPy arrays."""
    rng = np.random.default_rng(seed)
    gates = rng.dirichlet(np.ones(E), (groups, M)).astype(np.float32)
    routed = np.zeros((groups, M, E), np.float32)
    for token in np.ndindex(groups, M):
        routed[token][rng.permutation(E)[:2]] = 1
    kept = routed * (rng.random(routed.shape) < 0.4)
    valid = rng.random((groups, M)) < 0.8
    return gates, routed, kept, valid, rng.integers(0, KINDS, (groups, M))


def count(*choices, num_kinds=KINDS, losses=None):
    return collect(losses or {}, *map(jnp.asarray, choices), num_kinds)


def test_counts_are_those_of_a_loop():
    gates, routed, kept, valid, kind = random_choices()
    found = count(gates, routed, kept, valid, kind)
    counts = {n: np.zeros((KINDS, E)) for n in ("routed", "kept")}
    tokens, unserved, entropy = np.zeros(KINDS), np.zeros(KINDS), 0.0
    for t in np.ndindex(G, M):
        if valid[t]:
            counts["routed"][kind[t]] += routed[t]
            counts["kept"][kind[t]] += kept[t]
            tokens[kind[t]] += 1
            unserved[kind[t]] += not kept[t].any()
            entropy -= sum(g * np.log(g) for g in gates[t].tolist())
    np.testing.assert_array_equal(found.routed, counts["routed"])
    np.testing.assert_array_equal(found.kept, counts["kept"])
    np.testing.assert_array_equal(found.tokens, tokens)
    np.testing.assert_array_equal(found.unserved, unserved)
    assert unserved.sum() > 0
    assert float(found.entropy) == pytest.approx(entropy, rel=1e-5)
    drops = 1 - counts["kept"].sum(-1) / counts["routed"].sum(-1)
    np.testing.assert_allclose(found.drop_fraction_by_kind(), drops, rtol=1e-6)
    total = 1 - counts["kept"].sum() / counts["routed"].sum()
    assert float(found.drop_fraction()) == pytest.approx(total)
    assert float(found.unserved_fraction()) == pytest.approx(unserved.sum() / tokens.sum())
    assert float(found.mean_entropy()) == pytest.approx(entropy / tokens.sum(), rel=1e-5)


def test_padding_counts_in_nothing():
    gates, routed, kept, valid, kind = random_choices()
    other = random_choices(seed=1)
    # What padding holds, chooses and is called makes no difference.
    where = valid[..., None]
    changed = [np.where(where, a, b) for a, b in zip((gates, routed, kept), other, strict=False)]
    jax.tree.map(
        np.testing.assert_array_equal,
        count(gates, routed, kept, valid, kind),
        count(*changed, valid, np.where(valid, kind, other[4])),
    )
    nothing = count(gates, routed, kept, np.zeros_like(valid), kind)
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(nothing))
    for value in (
        nothing.load(), nothing.max_load(), nothing.drop_fraction_by_kind(),
        nothing.unserved_fraction(), nothing.mean_entropy(),
    ):  # fmt: skip
        np.testing.assert_array_equal(value, 0)  # and not NaN


def test_a_kind_without_tokens_dropped_nothing():
    gates, routed, _, valid, kind = random_choices()
    found = count(gates, routed, 0 * routed, valid, kind, num_kinds=KINDS + 1)
    assert np.asarray(found.drop_fraction_by_kind()).tolist() == [1, 1, 1, 0]
    assert float(found.unserved_fraction()) == 1


def test_partial_places_are_counted_by_how_much():
    gates, _, _, valid, kind = random_choices()
    found = count(gates, gates, gates / 4, valid, kind)
    assert float(found.drop_fraction()) == pytest.approx(0.75)
    assert float(found.routed.sum()) == pytest.approx(float(valid.sum()), rel=1e-5)
    assert float(found.unserved_fraction()) == 0


def test_maximal_load_is_1_at_balance_and_e_at_worst():
    gates, _, _, _, kind = random_choices()
    valid = np.ones((G, M), bool)
    balanced = np.tile(np.eye(E, dtype=np.float32), (G, M // E, 1))
    assert float(count(gates, balanced, balanced, valid, kind).max_load()) == 1
    one = np.zeros_like(balanced)
    one[..., 2] = 1
    worst = count(gates, one, one, valid, kind)
    assert float(worst.max_load()) == E
    assert np.asarray(worst.load()).tolist() == [0, 0, 1, 0]


def test_entropy_of_certain_and_of_undecided_gates():
    _, routed, kept, _, kind = random_choices()
    valid = np.ones((G, M), bool)
    even = np.full((G, M, E), 1 / E, np.float32)
    assert float(count(even, routed, kept, valid, kind).mean_entropy()) == pytest.approx(np.log(E))
    certain = np.zeros((G, M, E), np.float32)
    certain[..., 0] = 1
    assert float(count(certain, routed, kept, valid, kind).mean_entropy()) == 0


def test_microbatches_add_up_to_the_batch():
    batch = random_choices(groups=4)
    whole = count(*batch)
    halves = [count(*(a[i : i + 2] for a in batch)) for i in (0, 2)]
    added = jax.tree.map(jnp.add, *halves)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), added, whole)
    np.testing.assert_allclose(added.drop_fraction_by_kind(), whole.drop_fraction_by_kind())


METHODS = (
    "load", "max_load", "drop_fraction", "drop_fraction_by_kind", "unserved_fraction",
    "mean_entropy",
)  # fmt: skip


@pytest.mark.parametrize("method", METHODS)
def test_layers_lead(method):
    layers = [count(*random_choices(seed), losses={"z": jnp.ones(())}) for seed in range(5)]
    stacked = jax.tree.map(lambda *a: jnp.stack(a), *layers)
    assert isinstance(stacked, MoEReport) and stacked.losses["z"].shape == (5,)
    each = [getattr(layer, method)() for layer in layers]
    np.testing.assert_allclose(getattr(stacked, method)(), np.stack(each), rtol=1e-6)


def test_nothing_is_learned_from_counts():
    gates, routed, kept, valid, kind = random_choices()

    def total(gates, routed):
        found = count(gates, routed, kept, valid, kind)
        return sum(leaf.sum() for leaf in jax.tree.leaves(found))

    for gradient in jax.grad(total, (0, 1))(jnp.asarray(gates), jnp.asarray(routed)):
        np.testing.assert_array_equal(gradient, 0)
