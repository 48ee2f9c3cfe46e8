"""Where arrays lie, by the names of their axes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from vimoe_jax.parallel import rules
from vimoe_jax.parallel.mesh import make_mesh

DT, DF = {"data": 2, "tensor": 2}, {"data": 2, "fsdp": 4}
EXPERTS = ("experts", "embed", "mlp")


@pytest.mark.parametrize(
    ("axes", "shape", "sizes", "over", "expected"),
    [
        (("batch", None), (8, 3), {"data": 2, "fsdp": 2}, (), P(("data", "fsdp"), None)),
        # An axis that does not divide is left out, the next one may still be taken.
        (("batch",), (6,), {"data": 4, "fsdp": 2}, (), P("fsdp")),
        # Matrices only are split further.
        (("mlp",), (8,), DT, rules.KEPT, P("tensor")),
        (("embed", "mlp"), (8, 8), DT, rules.KEPT, P("data", "tensor")),
        (("embed", "mlp"), (3, 8), DT, rules.KEPT, P(None, ("tensor", "data"))),
        (("layers", "embed"), (8, 8), DF, rules.KEPT, P(None, ("fsdp", "data"))),
        (("layers", "embed"), (8, 8), DF, rules.BETWEEN, P(None, "fsdp")),
        # Experts one by one, but not over `expert` and another axis.
        (EXPERTS, (8, 8, 8), {"data": 4, "fsdp": 2}, rules.KEPT, P(("fsdp", "data"), None, None)),
        (EXPERTS, (4, 8, 8), {"data": 4, "fsdp": 2}, rules.KEPT, P("fsdp", "data", None)),
        (EXPERTS, (8, 8, 8), {"data": 2, "expert": 4}, rules.KEPT, P("expert", "data", None)),
    ],
    ids=str,
)  # fmt: skip
def test_spec(axes, shape, sizes, over, expected):
    mesh = make_mesh(sizes, jax.devices()[: int(np.prod(list(sizes.values())))])
    assert rules.spec(axes, shape, mesh, over) == expected


def apart(sizes, kept):
    """The largest error of experts' gradient, summed over groups and split as `kept` says."""
    mesh = make_mesh(sizes, jax.devices()[: int(np.prod(list(sizes.values())))])
    keys = jax.random.split(jax.random.key(0))
    x, d_y = (jax.random.normal(k, (8, 40, 8)) for k in keys)  # (E, rows, D) and (E, rows, F)

    def split(a, partition):
        return jax.lax.with_sharding_constraint(a, NamedSharding(mesh, partition))

    @jax.jit
    def d_w(x, d_y):
        rows = P("expert", ("data", "fsdp"))
        return split(jnp.einsum("erd,erf->edf", split(x, rows), split(d_y, rows)), kept(mesh))

    return float(jnp.abs(d_w(x, d_y) - jnp.einsum("erd,erf->edf", x, d_y)).max())


@pytest.mark.parametrize(
    "sizes",
    [
        {"data": 2, "fsdp": 2, "expert": 2},
        {"fsdp": 4, "expert": 2},
        {"fsdp": 2, "expert": 4},
        {"data": 4, "expert": 2},
        {"data": 4, "fsdp": 2},
        {"data": 8},
    ],
    ids=str,
)
@pytest.mark.parametrize("shape", [(8, 8, 8), (8, 4, 2), (8, 2, 8)], ids=str)
def test_partitioned_gradients_of_experts(sizes, shape):
    """XLA's partitioner is right about all layouts that `spec` may choose."""
    assert apart(sizes, lambda mesh: rules.spec(EXPERTS, shape, mesh, rules.KEPT)) < 1e-4


@pytest.mark.xfail(reason="openxla/xla issue 40034; when it passes, `spec` needs no exception")
def test_partitioned_gradients_of_experts_over_two_axes():
    sizes = {"data": 2, "fsdp": 2, "expert": 2}
    assert apart(sizes, lambda mesh: P(("expert", "fsdp"), "data")) < 1e-4
