"""The new model's arrays from the old one's, one parameter at a time, each where the mesh has it.

Every step is one small compiled function from the old arrays that a parameter needs to the new one,
sharded inside and out: no host ever holds a whole model, and an old array is let go once its last
user has it. Adam's moments go the same way as the weights they belong to.
"""

from __future__ import annotations

import functools
import zlib
from collections import Counter
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding

from vimoe_jax.model.blueprint import Params
from vimoe_jax.parallel import rules
from vimoe_jax.upcycle.methods import Layout, Units, Upcycling, hash_table
from vimoe_jax.upcycle.migration import Migration, Origin
from vimoe_jax.upcycle.moments import Shapes

Layouts = Mapping[tuple[str, int], Layout]  # by part and layer

# Where a leaf's hidden units lie, counted from the end; None: it has none.
_UNIT_AXIS = {"w_in": -1, "b_in": -1, "w_out": -2, "b_out": None}
_ROUTER_STD = 0.02


def upcycle(
    migration: Migration,
    params: Params,
    layouts: Layouts,
    how: Upcycling,
    mesh: Mesh,
    seed: int,
) -> Params:
    """The new model's parameters.

    Args:
      migration: from the dense model to the new one.
      params: the dense model's, on the mesh; emptied on the way.
      layouts: of every upcycled layer.
      how: the method and its numbers.
      mesh: where the new parameters lie.
      seed: of routers, redrawn units and noise; the same draws on any mesh.
    """

    def make(name: str, origin: Origin, sources: list[jax.Array], where: NamedSharding):
        shape = migration.new.shapes()[name]
        if not origin.leaf.startswith(("experts.", "shared.")):
            return _routing(migration, origin, name, shape, where, layouts, how, seed)
        units = _stacked_units(origin, layouts)
        leaf = origin.leaf.split(".")[1]
        drops = how.method == "drop" and origin.leaf.startswith("experts.")
        noise = how.noise if how.method == "noise" and leaf.startswith("w_") else 0.0
        noise = noise if origin.leaf.startswith("experts.") else 0.0
        keys = jnp.stack([_key(seed, origin, layer) for layer in origin.layers])
        return _experts(
            sources, units, keys, leaf=leaf, stacked=origin.part != "connector", scaled=True,
            redraw=drops, noise=noise, where=where,
        )  # fmt: skip

    return _each(migration, params, mesh, make, set(migration.new.shapes()))


def upcycle_moments(
    migration: Migration, moments: Params, layouts: Layouts, mesh: rules.AnyMesh, like: Shapes
) -> Params:
    """A moment of Adam for the new model's trainable parameters.

    Each unit keeps its dense unit's moment (unscaled: Adam's step does not depend on the gradient's
    scale); zero for redrawn units, for routers, and where the source has none (a part that was
    frozen).

    Args:
      migration: from the dense model to the new one.
      moments: the dense model's, by parameter; emptied on the way.
      layouts: of every upcycled layer.
      mesh: where the new moments lie.
      like: shape and dtype of each.
    """

    def make(name: str, origin: Origin, sources: list[jax.Array], where: NamedSharding):
        if not origin.leaf.startswith(("experts.", "shared.")):
            return jnp.zeros(like[name].shape, jnp.float32, device=where)
        units = _stacked_units(origin, layouts)
        return _experts(
            sources, units, None, leaf=origin.leaf.split(".")[1],
            stacked=origin.part != "connector", scaled=False, redraw=False, noise=0.0, where=where,
        )  # fmt: skip

    new = _each(migration, moments, mesh, make, set(like))
    return {n: m.astype(like[n].dtype) for n, m in new.items()}


def _each(migration: Migration, old: Params, mesh: rules.AnyMesh, make, names: set[str]) -> Params:
    """Every new parameter in turn; what `make` is not needed for is taken over as it is."""
    where = migration.new.shardings(mesh)
    needs = {}
    for name in sorted(names):
        origin = migration.origin(name)
        leaf = "" if not origin.leaf else f".{origin.leaf.partition('.')[2]}"
        used = [(f"{source}{leaf}", place) for source, place in origin.sources]
        drawn = origin.leaf and not origin.leaf.startswith(("experts.", "shared."))
        needs[name] = origin, [] if drawn else used
    users = Counter(source for _, used in needs.values() for source in {s for s, _ in used})
    new = {}
    for name, (origin, used) in needs.items():
        if any(source not in old for source, _ in used):
            new[name] = jnp.zeros(migration.new.shapes()[name], jnp.float32, device=where[name])
            continue
        if origin.leaf:
            new[name] = make(name, origin, _gather(old, used), where[name])
        else:
            new[name] = _taken(old, used, where[name])
        for source in {s for s, _ in used}:
            users[source] -= 1
            if not users[source]:
                del old[source]
    return new


def _gather(old: Params, used: list[tuple[str, int | None]]) -> list[jax.Array]:
    """The dense arrays of layers stacked in one parameter."""
    if len({source for source, _ in used}) == 1:
        array = old[used[0][0]]
        places = [place for _, place in used]
        if places == [None] or places == list(range(array.shape[0])):
            return [array]
        return [_rows(array, places=tuple(places))]
    return [_rows(old[source], places=(place,)) for source, place in used]


@functools.partial(jax.jit, static_argnames="places")
def _rows(x: jax.Array, *, places: tuple[int, ...]) -> jax.Array:
    return jnp.stack([x[place] for place in places])


def _taken(old: Params, used: list[tuple[str, int | None]], where: NamedSharding) -> jax.Array:
    arrays = _gather(old, used)
    if len(arrays) == 1:
        return jax.device_put(arrays[0], where)
    return _joined(arrays, where=where)


@functools.partial(jax.jit, static_argnames="where")
def _joined(arrays: list[jax.Array], *, where: NamedSharding) -> jax.Array:
    return jax.lax.with_sharding_constraint(jnp.concatenate(arrays), where)


def _stacked_units(origin: Origin, layouts: Layouts) -> Units:
    """The units of the layers stacked in one parameter, with a leading axis over them."""
    which = origin.leaf.split(".")[0]
    each = [getattr(layouts[origin.part, layer], which) for layer in origin.layers]
    return Units(
        np.stack([u.source for u in each]),
        np.stack([u.scale for u in each]),
        np.stack([u.fresh for u in each]),
        each[0].bias,
    )


def _experts(sources, units: Units, keys, **static) -> jax.Array:
    return _experts_of(sources, units.source, units.scale, units.fresh, units.bias, keys, **static)


@functools.partial(
    jax.jit, static_argnames=("leaf", "stacked", "scaled", "redraw", "noise", "where")
)
def _experts_of(
    sources: list[jax.Array],
    units: jax.Array,
    scale: jax.Array,
    fresh: jax.Array,
    bias: jax.Array,
    keys: jax.Array | None,
    *,
    leaf: str,
    stacked: bool,
    scaled: bool,
    redraw: bool,
    noise: float,
    where: NamedSharding,
) -> jax.Array:
    """One leaf of the experts: (L, …) dense arrays -> (L, E, …), or without L in the connector.

    Args:
      sources: dense arrays, to be joined along L.
      units: (L, E, W), the dense unit of each.
      scale: (L, E, W), of rows of down.
      fresh: (L, E, W), drawn anew.
      bias: scalar, factor of the output bias.
      keys: (L,), for draws; None where nothing is drawn.
      leaf: "w_in", "b_in", "w_out", "b_out".
      stacked: whether there is an axis L.
      scaled: whether `scale` and `bias` apply (to weights, not to moments).
      redraw: draw the fresh units from N(mean, std²) of the dense array; else they are zero.
      noise: standard deviation of what is added to each entry, over the dense array's own.
      where: sharding of the result.
    """
    dense = jnp.concatenate(sources) if stacked else sources[0][None]
    axis = _UNIT_AXIS[leaf]

    def one(w, units, scale, fresh, key):
        if axis is None:
            out = jnp.broadcast_to(w, (units.shape[0], *w.shape))
            return out * bias if scaled else out
        out = jnp.moveaxis(w, axis, 0)[units]  # (E, W, …)
        rest = (...,) + (None,) * (w.ndim - 1)
        if redraw:
            drawn = w.mean() + w.std() * jax.random.normal(jax.random.fold_in(key, 0), out.shape)
            out = jnp.where(fresh[rest], drawn, out)
        else:
            out = jnp.where(fresh[rest], 0, out)
        if noise:
            drawn = jax.random.normal(jax.random.fold_in(key, 1), out.shape)
            out = out + noise * w.std() * drawn
        if scaled and leaf == "w_out":
            out = out * scale[rest]
        return jnp.moveaxis(out, 1, axis)

    mapped = (0, 0, 0, 0, None if keys is None else 0)
    out = jax.vmap(one, in_axes=mapped)(dense, units, scale, fresh, keys)
    return jax.lax.with_sharding_constraint(out if stacked else out[0], where)


def _routing(migration, origin, name, shape, where, layouts, how, seed) -> jax.Array:
    """The router, or what stands in its place; all shards of a group get the same column."""
    first = layouts[origin.part, origin.layers[0]]
    options = migration.options(origin.part)
    if origin.leaf == "table":
        table = hash_table(options, shape[-2], first.shards)
        return jax.device_put(np.broadcast_to(table, shape), where)
    if origin.leaf == "slot_scale":
        return jnp.ones(shape, jnp.float32, device=where)
    if origin.leaf == "bias" or how.router_init == "zeros":
        return jnp.zeros(shape, jnp.float32, device=where)
    keys = jnp.stack([_key(seed, origin, layer) for layer in origin.layers])
    stacked = origin.part != "connector"
    return _router(keys, shape=shape, shards=first.shards, stacked=stacked, where=where)


@functools.partial(jax.jit, static_argnames=("shape", "shards", "stacked", "where"))
def _router(keys, *, shape: tuple[int, ...], shards: int, stacked: bool, where: NamedSharding):
    dim, experts, *slots = shape[1:] if stacked else shape  # (D, E) or (D, E, C)

    def one(key: jax.Array) -> jax.Array:
        columns = jax.random.normal(key, (dim, experts // shards, *slots), jnp.float32)
        return _ROUTER_STD * jnp.repeat(columns, shards, axis=1)

    out = jax.vmap(one)(keys)
    return jax.lax.with_sharding_constraint(out if stacked else out[0], where)


def _key(seed: int, origin: Origin, layer: int) -> jax.Array:
    name = f"{origin.part}.{layer}.{origin.leaf}"
    return jax.random.fold_in(jax.random.key(seed), zlib.crc32(name.encode()))
