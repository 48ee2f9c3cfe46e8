"""Frozen dataclasses that are pytrees.

As `flax.struct`, with one difference: where JAX rebuilds an object from leaves, its constructor is
not called. Leaves may then stand for arrays (shapes, shardings, axes to map over), which the
annotations of the fields do not describe; only what code makes itself is checked against them.
"""

from __future__ import annotations

import dataclasses
from typing import Any, TypeVar, dataclass_transform

import jax

T = TypeVar("T")


def field(*, pytree_node: bool = True, **kwargs: Any) -> Any:
    """A field; without `pytree_node` it is static: part of the tree's structure, and hashable."""
    return dataclasses.field(metadata={"pytree_node": pytree_node}, **kwargs)


@dataclass_transform(field_specifiers=(field,), frozen_default=True)
def dataclass(cls: type[T]) -> type[T]:
    """Makes a class a frozen dataclass and a pytree; `dataclasses.replace` changes fields."""
    made: Any = dataclasses.dataclass(frozen=True)(cls)
    fields = dataclasses.fields(made)
    nodes = [f.name for f in fields if f.metadata.get("pytree_node", True)]
    static = [f.name for f in fields if f.name not in nodes]
    keys = [jax.tree_util.GetAttrKey(name) for name in nodes]

    def flatten(x: Any) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
        return tuple(getattr(x, n) for n in nodes), tuple(getattr(x, n) for n in static)

    def flatten_with_keys(x: Any) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
        leaves, structure = flatten(x)
        return tuple(zip(keys, leaves, strict=True)), structure

    def unflatten(structure: Any, leaves: Any) -> Any:
        x = object.__new__(made)
        for names, values in ((nodes, leaves), (static, structure)):
            for name, value in zip(names, values, strict=True):
                object.__setattr__(x, name, value)
        return x

    jax.tree_util.register_pytree_with_keys(made, flatten_with_keys, unflatten, flatten)
    return made
