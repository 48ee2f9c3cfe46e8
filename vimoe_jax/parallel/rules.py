"""The one table from logical axes to mesh axes, for parameters and activations."""

from __future__ import annotations

import contextlib
import contextvars
import functools
from collections.abc import Iterator

import jax
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

MESH_AXES = ("data", "fsdp", "expert", "tensor")
TOKEN_AXES = ("data", "fsdp", "expert")

# Everything that holds tokens is split over all axes but `tensor`; within expert buffers the
# `expert` axis moves from the groups to the experts, which is what makes XLA exchange tokens by
# all-to-all.
RULES: dict[str, tuple[str, ...]] = {
    # activations
    "batch": TOKEN_AXES,
    "group": TOKEN_AXES,
    "expert_group": ("data", "fsdp"),
    # parameters and activations
    "experts": ("expert",),
    "heads": ("tensor",),
    "kv_heads": ("tensor",),
    "mlp": ("tensor",),
    "vocab": ("tensor",),
    # parameters: a matrix has one of these, and is split further, see `spec`
    "embed": (),
    # never split
    "layers": (),
}

# A matrix's ways, from where it is kept to where it is multiplied: with its moments it is split
# over all axes that have rows (Xu et al. 2020, arXiv:2004.13336; ZeRO, arXiv:1910.02054); once a
# step it is gathered, in the compute dtype, over all of them but `fsdp`; over that one each time
# that its layer runs. Its gradient goes back at once.
KEPT = ("fsdp", "expert", "data")
BETWEEN = ("fsdp",)
WHOLE = ()

Axes = tuple[str | None, ...]  # logical, of each dimension
MeshAxes = tuple[str, ...]
AnyMesh = Mesh | AbstractMesh  # the latter for shapes alone
_mesh: contextvars.ContextVar[AnyMesh | None] = contextvars.ContextVar("mesh", default=None)


@contextlib.contextmanager
def use_mesh(mesh: AnyMesh | None) -> Iterator[None]:
    """Within this context (while tracing), `constrain` refers to this mesh."""
    token = _mesh.set(mesh)
    try:
        yield
    finally:
        _mesh.reset(token)


def active_mesh() -> AnyMesh | None:
    """The mesh of `use_mesh`, if it has more than one device."""
    mesh = _mesh.get()
    return None if mesh is None or mesh.size == 1 else mesh


def spec(
    axes: Axes, shape: tuple[int, ...], mesh: AnyMesh, over: MeshAxes = WHOLE
) -> PartitionSpec:
    """The partition of an array with these logical axes.

    A mesh axis that does not divide its dimension is left out (the array is replicated over it),
    and no mesh axis is used twice: the first dimension that names it gets it.

    Args:
      axes: of each dimension; None is never split.
      shape: of the array.
      mesh: the axes' sizes.
      over: further mesh axes to split a matrix over (`KEPT`, `BETWEEN` or `WHOLE`), each along the
        first dimension that it divides, layers left out: a layer's pieces then follow each
        other, and are gathered without being transposed.
    """
    # Split along their number over `expert` and another axis, but not over all that the gradient is
    # summed over, experts' gradients come out wrong: XLA's partitioner, as in its
    # issue 40034 (tests/parallel/test_rules.py has it without a model).
    apart = (None, "layers", *(("experts",) if mesh.shape["expert"] > 1 else ()))
    used: set[str] = set()
    entries: list[tuple[str, ...] | None] = []
    for name, size in zip(axes, shape, strict=True):
        chosen: list[str] = []
        wanted = RULES[name] if name else ()
        if "embed" in axes and name not in apart:
            wanted += over
        for axis in wanted:
            parts = mesh.shape[axis]
            if axis not in used and parts > 1 and size % parts == 0:
                chosen.append(axis)
                used.add(axis)
                size //= parts
        entries.append(tuple(chosen) or None)
    return PartitionSpec(*entries)


def sharding(
    axes: Axes, shape: tuple[int, ...], mesh: AnyMesh, over: MeshAxes = WHOLE
) -> NamedSharding:
    """`spec` on its mesh."""
    return NamedSharding(mesh, spec(axes, shape, mesh, over))


def gather(x: jax.Array, axes: Axes, over: MeshAxes = WHOLE) -> jax.Array:
    """A matrix split over `over` and no further; its gradient split as the matrix is kept.

    Without a mesh, does nothing.
    """
    mesh = active_mesh()
    if mesh is None:
        return x
    there, back = (sharding(axes, x.shape, mesh, to) for to in (over, KEPT))
    return x if there == back else _gather(x, there, back)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _gather(x, there, back):
    return jax.lax.with_sharding_constraint(x, there)


def _gather_bwd(there, back, _, d_x):
    # Without this, each device would get the whole sum and keep a piece of it.
    return (jax.lax.with_sharding_constraint(d_x, back),)


_gather.defvjp(lambda x, there, back: (_gather(x, there, back), None), _gather_bwd)


def constrain(x: jax.Array, axes: Axes, over: MeshAxes = WHOLE) -> jax.Array:
    """Fixes the sharding of an array by its logical axes; without a mesh, does nothing."""
    mesh = active_mesh()
    if mesh is None:
        return x
    return jax.lax.with_sharding_constraint(x, sharding(axes, x.shape, mesh, over))
