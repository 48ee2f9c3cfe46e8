"""The hash router's table."""

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from tests.moe.routers.gates import SEEDS
from vimoe_jax.moe.routers.hash import hash_table


@hypothesis.given(
    num_ids=st.integers(0, 200), num_experts=st.integers(1, 12), k=st.integers(1, 12), seed=SEEDS
)
@hypothesis.settings(deadline=None, max_examples=60)
def test_hash_table_is_even_and_repeatable(num_ids, num_experts, k, seed):
    k = min(k, num_experts)
    table = hash_table(num_ids, num_experts, k, seed)
    assert table.shape == (num_ids, k) and table.dtype == np.int32
    assert ((table >= 0) & (table < num_experts)).all()
    assert all(len(set(row)) == k for row in table.tolist())
    counts = np.bincount(table[:, 0], minlength=num_experts)
    assert counts.max() - counts.min() <= 1
    np.testing.assert_array_equal(table, hash_table(num_ids, num_experts, k, seed))


def test_hash_tables_differ_by_seed():
    assert (hash_table(100, 8, 2) != hash_table(100, 8, 2, seed=1)).any()


@pytest.mark.parametrize("k", [0, 5])
def test_hash_table_refuses_bad_k(k):
    with pytest.raises(ValueError, match="k must be between 1 and E = 4"):
        hash_table(10, 4, k)
