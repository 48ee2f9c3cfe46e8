"""Look-ups in a table that is split over devices."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vimoe_jax.parallel import rules
from vimoe_jax.parallel.lookup import TABLE, lookup
from vimoe_jax.parallel.mesh import make_mesh
from vimoe_jax.plan.collectives import collectives

D = 4


def on_a_mesh(sizes, table, tokens, d_rows):
    """Rows, the table's gradient, and what is sent."""
    mesh = make_mesh(sizes, jax.devices()[: math.prod(sizes.values())])

    def both(table, tokens, d_rows):
        with rules.use_mesh(mesh):
            rows, vjp = jax.vjp(lambda table: lookup(table, tokens), table)
            return rows, vjp(d_rows)[0]

    kept = rules.sharding(TABLE, table.shape, mesh, rules.KEPT)
    batch = rules.sharding(("batch", None, None), d_rows.shape, mesh)
    split = rules.sharding(("batch", None), tokens.shape, mesh)
    compiled = (
        jax.jit(both, in_shardings=(kept, split, batch), out_shardings=(batch, kept))
        .lower(table, tokens, d_rows)
        .compile()
    )
    placed = (jax.device_put(a, at) for a, at in ((table, kept), (tokens, split), (d_rows, batch)))
    return *jax.device_get(compiled(*placed)), collectives(compiled.as_text(), mesh)


@pytest.mark.parametrize(
    "sizes",
    [{"data": 4}, {"fsdp": 2, "tensor": 2}, {"data": 2, "fsdp": 2, "expert": 2}, {"tensor": 2}],
    ids=str,
)
@pytest.mark.parametrize("vocab", [64, 24, 61])  # many rows; fewer than tokens; no device's number
@pytest.mark.parametrize("batch", [8, 3])  # rows for each device, and not
def test_rows_and_gradients_are_those_of_one_device(sizes, vocab, batch):
    keys = jax.random.split(jax.random.key(0), 3)
    table = jax.random.normal(keys[0], (vocab, D))
    tokens = jax.random.randint(keys[1], (batch, 4), 0, vocab).at[0].set(vocab - 1).at[1].set(0)
    d_rows = jax.random.normal(keys[2], (batch, 4, D))
    rows, d_table, _ = on_a_mesh(sizes, table, tokens, d_rows)
    np.testing.assert_array_equal(rows, table[tokens])
    expected = jnp.zeros_like(table).at[tokens].add(d_rows)
    np.testing.assert_allclose(d_table, expected, atol=1e-5)


@pytest.mark.parametrize(("vocab", "travels"), [(512, (8 * 4, D)), (16, (16, D))])
def test_what_is_smaller_travels(vocab, travels):
    table, tokens = jnp.zeros((vocab, D)), jnp.zeros((8, 4), jnp.int32)
    *_, sent = on_a_mesh({"data": 4}, table, tokens, jnp.zeros((8, 4, D)))
    floats = [math.prod(c.shape) for c in sent if c.shape and c.shape[-1] == D]
    assert floats
    assert max(floats) <= math.prod(travels)
