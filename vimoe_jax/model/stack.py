"""Layers in a scan: compile time does not grow with depth, whatever the pattern of layer kinds.

A stack of kinds such as dense, MoE, dense, MoE is cut into *segments*: a unit of one or more layers
(dense, MoE) that repeats. Each segment is one `lax.scan` over its repeats, with the parameters of
each layer of the unit stacked along a leading axis.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from vimoe_jax.config.parts import Part
from vimoe_jax.moe.dispatch import MOVED
from vimoe_jax.parallel.parameters import Buffer, gathered
from vimoe_jax.parallel.rules import BETWEEN, WHOLE, active_mesh

HOST_MEMORY = "pinned_host"  # the kind of memory that `remat="offload"` needs

Segment = tuple[tuple[Hashable, ...], int]  # a unit of kinds, and how often it repeats


def plan(kinds: Sequence[Hashable]) -> tuple[Segment, ...]:
    """Cuts a sequence of kinds into repeated units with as few layer bodies as possible.

    Fewer bodies compile faster; among equals, fewer segments win.

    >>> plan("DMDMDM")
    ((('D', 'M'), 3),)
    >>> plan("DDDDM")
    ((('D',), 4), (('M',), 1))
    """
    kinds = tuple(kinds)

    @functools.cache
    def best(start: int) -> tuple[int, int, tuple[Segment, ...]]:
        if start == len(kinds):
            return 0, 0, ()
        options = []
        for size in range(1, len(kinds) - start + 1):
            unit = kinds[start : start + size]
            end = start + size
            options.append((unit, 1, end))
            while kinds[end : end + size] == unit:
                end += size
                options.append((unit, (end - start) // size, end))
        candidates = []
        for unit, repeats, end in options:
            bodies, segments, rest = best(end)
            candidates.append((len(unit) + bodies, 1 + segments, ((unit, repeats), *rest)))
        return min(candidates, key=lambda c: c[:2])

    return best(0)[2]


@functools.lru_cache(maxsize=64)
def layer_places(part: Part) -> tuple[tuple[str, int | None], ...]:
    """Where each layer's parameters are, first to last.

    Returns:
      Of each layer the dotted path of its module and its place along that module's first axis, on
      which layers are stacked; the connector is not stacked, and its place is None.
    """
    if part.name == "connector":
        return ((part.name, None),)
    found: list[tuple[str, int | None]] = []
    for i, (unit, repeats) in enumerate(plan(part.moe_layers())):
        for repeat in range(repeats):
            found += [(f"{part.name}.blocks.segments.{i}.{j}", repeat) for j in range(len(unit))]
    return tuple(found)


# (layer, x, cache, key) -> (x, cache, report)
Apply = Callable[[Any, jax.Array, Any, jax.Array | None], tuple[jax.Array, Any, Any]]


class Stack(nnx.Module):
    """L layers, of several kinds, run by scans.

    `segments[i][j]` is the j-th layer of segment i's unit, its parameters stacked over the repeats
    (logical axis "layers").
    """

    def __init__(
        self,
        kinds: Sequence[Hashable],
        make: Callable[[Hashable, nnx.Rngs], nnx.Module],
        *,
        remat: str = "none",
        unroll: int = 1,
        rngs: nnx.Rngs,
    ):
        self.plan = plan(kinds)
        self.remat, self.unroll = remat, unroll
        self.segments = nnx.List(
            [
                nnx.List([_stacked(functools.partial(make, kind), repeats, rngs) for kind in unit])
                for unit, repeats in self.plan
            ]
        )

    def __call__(
        self, apply: Apply, x: jax.Array, caches: Any = None, key: jax.Array | None = None
    ) -> tuple[jax.Array, Any, Any]:
        """Runs all layers in order.

        Args:
          apply: runs one layer; what it reports is a tree of arrays, the same for all layers that
            report anything, or None.
          x: the input.
          caches: `[segment][layer of the unit]`, stacked over repeats, or None.
          key: split into one key per layer, or None.

        Returns:
          The output; the new caches; the reports as one tree with a leading axis over the layers
          that report, first to last, or None where none does.
        """
        x, caches, reports = self.run(apply, x, caches, key)
        return x, caches, merge(reports)

    def run(
        self, apply: Apply, x: jax.Array, caches: Any = None, key: jax.Array | None = None
    ) -> tuple[jax.Array, Any, list[list[Any]]]:
        """As a call; reports nested as `caches` are, `[segment][layer of the unit]`."""
        new_caches, reports = [], []
        for i, (_, repeats) in enumerate(self.plan):
            graph, state = nnx.split(self.segments[i])
            cache = [None] * len(self.segments[i]) if caches is None else caches[i]
            keys = None
            if key is not None:
                keys = jax.random.split(
                    jax.random.fold_in(key, i), (repeats, len(self.segments[i]))
                )

            def body(x, xs, graph=graph):
                state, cache, keys = xs
                x = checkpoint_name(x, _INPUT)
                out_caches, out_reports = [], []
                for j, layer in enumerate(nnx.merge(graph, gathered(state, WHOLE))):
                    x, c, r = apply(layer, x, cache[j], None if keys is None else keys[j])
                    out_caches.append(c)
                    out_reports.append(r)
                return x, (out_caches, out_reports)

            if self.remat != "none":
                body = jax.checkpoint(body, prevent_cse=False, policy=_policy(self.remat))
            if self.unroll < repeats:
                state = gathered(state, BETWEEN)
            else:
                body = _gathering(body)
            x, (cache, report) = jax.lax.scan(
                body, x, (state, cache, keys), length=repeats, unroll=self.unroll
            )
            new_caches.append(cache)
            reports.append(report)
        return x, None if caches is None else new_caches, reports


def merge(reports: list[list[Any]]) -> Any:
    """What `Stack.run` reports as one tree with a leading axis over layers, first to last.

    Layers that report None have no entry; None if no layer reports.
    """

    def interleave(*unit: jax.Array) -> jax.Array:
        return jnp.stack(unit, 1).reshape(-1, *unit[0].shape[1:])

    units = [[r for r in unit if r is not None] for unit in reports]
    merged = [jax.tree.map(interleave, *unit) for unit in units if unit]
    return jax.tree.map(lambda *parts: jnp.concatenate(parts), *merged) if merged else None


def unstack(segments: Sequence[Segment], reports: list[list[Any]]) -> list[Any]:
    """What `Stack.run` reports as one entry per layer, first to last (None where none)."""
    layers = []
    for (_, repeats), segment in zip(segments, reports, strict=True):
        for r in range(repeats):
            layers += [jax.tree.map(lambda a, r=r: a[r], report) for report in segment]
    return layers


def _gathering(body: Callable[..., Any]) -> Callable[..., Any]:
    """A scan's body that gathers its layers' parameters itself, and keeps them.

    Where no loop is left, each layer's then travel while others run; a loop waits for them in every
    turn, and is better given all at once.
    """
    return lambda x, xs: body(x, (gathered(xs[0], BETWEEN), *xs[1:]))


# Products, attention, kernels ("while": the portable grouped product): what takes long to compute
# again. All else is cheap to compute and dear to keep, being as large and often float32.
_COSTLY = (
    "dot_general", "dot_product_attention_fwd", "pallas_call", "mpmd_map", "custom_vmap_call",
    "while",
)  # fmt: skip


def _keeps(primitive: Any, *_: Any, **__: Any) -> bool:
    """Whether the backward pass finds this primitive's results kept (`remat="dots"`)."""
    return any(primitive.name.startswith(name) for name in _COSTLY)


_INPUT = "layer_input"


def _policy(remat: str) -> Callable[..., Any] | None:
    """What `jax.checkpoint` keeps of a repeat of a segment, besides its input; None for nothing."""
    policies = jax.checkpoint_policies
    if remat == "offload":
        return policies.save_and_offload_only_these_names(
            names_which_can_be_saved=[],
            names_which_can_be_offloaded=[_INPUT],
            offload_src="device",
            offload_dst=HOST_MEMORY,
        )
    moved = policies.save_only_these_names(*MOVED)
    products = {"dots": _keeps, "dots_no_batch": policies.dots_with_no_batch_dims_saveable}
    if remat in products:
        mesh = active_mesh()
        spread = mesh is not None and mesh.shape["expert"] > 1
        # What was sent is costly as well; where all experts are at hand, it is only a copy.
        keep = products[remat]
        return policies.save_from_both_policies(keep, moved) if spread else keep
    return {"dispatch": moved, "full": None}[remat]


def _stacked(make: Callable[[nnx.Rngs], nnx.Module], repeats: int, rngs: nnx.Rngs) -> nnx.Module:
    """`repeats` independently initialised copies of a layer, stacked along a new first axis."""

    def init(key: jax.Array) -> nnx.State:
        return nnx.state(make(nnx.Rngs(params=key)))

    graph = nnx.graphdef(nnx.eval_shape(lambda: make(nnx.Rngs(params=jax.random.key(0)))))
    state = jax.vmap(init)(jax.random.split(rngs.params(), repeats))
    layer = nnx.merge(graph, state)
    for _, variable in nnx.iter_graph(layer):
        if isinstance(variable, nnx.Param | Buffer):
            variable.set_metadata(axes=("layers", *variable.get_metadata("axes")))
    return layer


def empty(make: Callable[[], Any], repeats: int) -> Any:
    """Zeros shaped like `make()` with a leading axis of `repeats`: one segment layer's cache."""
    shapes = jax.eval_shape(make)
    return jax.tree.map(lambda a: jnp.zeros((repeats, *a.shape), a.dtype), shapes)
