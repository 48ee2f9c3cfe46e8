"""The one table from logical axes to mesh axes, for parameters and activations."""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Iterator

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

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
    # parameters
    "embed": ("fsdp",),
    # never split
    "layers": (),
}

Axes = tuple[str | None, ...]
_mesh: contextvars.ContextVar[Mesh | None] = contextvars.ContextVar("mesh", default=None)


@contextlib.contextmanager
def use_mesh(mesh: Mesh | None) -> Iterator[None]:
    """Within this context (while tracing), `constrain` refers to this mesh."""
    token = _mesh.set(mesh)
    try:
        yield
    finally:
        _mesh.reset(token)


def active_mesh() -> Mesh | None:
    """The mesh of `use_mesh`, if it has more than one device."""
    mesh = _mesh.get()
    return None if mesh is None or mesh.size == 1 else mesh


def spec(axes: Axes, shape: tuple[int, ...], mesh: Mesh) -> PartitionSpec:
    """The partition of an array with these logical axes.

    A mesh axis that does not divide its dimension is left out (the array is replicated over it),
    and no mesh axis is used twice: the first dimension that asks for it gets it.
    """
    used: set[str] = set()
    entries: list[tuple[str, ...] | None] = []
    for name, size in zip(axes, shape, strict=True):
        chosen: list[str] = []
        for axis in RULES[name] if name else ():
            parts = mesh.shape[axis]
            if axis not in used and parts > 1 and size % parts == 0:
                chosen.append(axis)
                used.add(axis)
                size //= parts
        entries.append(tuple(chosen) or None)
    return PartitionSpec(*entries)


def sharding(axes: Axes, shape: tuple[int, ...], mesh: Mesh) -> NamedSharding:
    """`spec` on its mesh."""
    return NamedSharding(mesh, spec(axes, shape, mesh))


def constrain(x: jax.Array, axes: Axes) -> jax.Array:
    """Fixes the sharding of an activation by its logical axes; without a mesh, does nothing."""
    mesh = active_mesh()
    if mesh is None:
        return x
    return jax.lax.with_sharding_constraint(x, sharding(axes, x.shape, mesh))
