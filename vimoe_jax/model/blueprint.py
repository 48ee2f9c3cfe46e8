"""A model apart from its numbers: what checkpoints, optimizers, sharding and converters work with.

Parameters travel as one flat dict from dotted path to array, `{"decoder.norm.scale": …}`; the
blueprint turns such a dict into a callable `VLM` and knows each parameter's shape and logical axes.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import jax
from flax import nnx
from jax.sharding import Mesh, NamedSharding

from vimoe_jax import config as config_lib
from vimoe_jax.model.stack import in_order, plan
from vimoe_jax.model.vlm import VLM, compute_dtype
from vimoe_jax.moe.block import rebalanced
from vimoe_jax.moe.options import moe_layers
from vimoe_jax.moe.stats import MoEStats
from vimoe_jax.parallel import rules
from vimoe_jax.parallel.parameters import Buffer

Params = dict[str, jax.Array]


@dataclasses.dataclass(frozen=True, eq=False)
class Blueprint:
    """Structure of a model; `build(params)` gives the model itself."""

    config: config_lib.Model
    vocab_size: int
    graph: nnx.GraphDef
    template: nnx.State  # abstract

    @classmethod
    def create(cls, c: config_lib.Model, vocab_size: int) -> Blueprint:
        """Traces the model without making an array."""
        graph, template = nnx.split(nnx.eval_shape(lambda: _make(c, vocab_size, 0)))
        return cls(c, vocab_size, graph, template)

    def _variables(self) -> dict[str, nnx.Variable]:
        return {".".join(map(str, path)): v for path, v in nnx.to_flat_state(self.template)}

    def init(self, key: jax.Array, mesh: Mesh | None = None) -> Params:
        """Random parameters, born sharded if a mesh is given; the same whatever the mesh."""

        def flat(key: jax.Array) -> Params:
            state = nnx.state(_make(self.config, self.vocab_size, key))
            return {".".join(map(str, path)): v[...] for path, v in nnx.to_flat_state(state)}

        return jax.jit(flat, out_shardings=None if mesh is None else self.shardings(mesh))(key)

    def build(self, params: Params) -> VLM:
        """The model with these parameters (also while tracing)."""
        filled = [
            (path, v.replace(params[".".join(map(str, path))]))
            for path, v in nnx.to_flat_state(self.template)
        ]
        return nnx.merge(self.graph, nnx.from_flat_state(filled))

    def cast(self, params: Params) -> Params:
        """The layers' matrices in the compute dtype, and what no stack has gathered on a mesh.

        `build` takes either; casting first reads each master weight once, where layers in a scan
        would each cast their slice in both passes.
        """
        dtype = compute_dtype(self.config.dtype)
        about = {name: v.get_metadata() for name, v in self._variables().items()}

        def one(name: str, p: jax.Array) -> jax.Array:
            axes = about[name]["axes"]
            p = p.astype(dtype) if about[name].get("cast") else p
            # A stack gathers its own, and what has a vocabulary is cast and gathered where used.
            return p if "layers" in axes or "vocab" in axes else rules.gather(p, axes)

        return {name: one(name, p) for name, p in params.items()}

    def axes(self) -> dict[str, rules.Axes]:
        """Logical axes of every parameter."""
        return {name: v.get_metadata("axes") for name, v in self._variables().items()}

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of every parameter."""
        return {name: v.shape for name, v in self._variables().items()}

    def abstract(self, mesh: Mesh) -> dict[str, jax.ShapeDtypeStruct]:
        """Shape, dtype and sharding of every parameter on a mesh."""
        where = self.shardings(mesh)
        return {
            name: jax.ShapeDtypeStruct(v.shape, v.dtype, sharding=where[name])
            for name, v in self._variables().items()
        }

    def shardings(self, mesh: Mesh, over: rules.MeshAxes = rules.KEPT) -> dict[str, NamedSharding]:
        """Sharding of every parameter on a mesh; `over` as in `rules.spec`."""
        axes = self.axes()
        return {n: rules.sharding(axes[n], s, mesh, over) for n, s in self.shapes().items()}

    def held(self, mesh: Mesh, over: rules.MeshAxes = rules.KEPT) -> int:
        """How many parameters a device holds; `over` as in `rules.spec`."""
        where, shapes = self.shardings(mesh, over), self.shapes()
        return sum(math.prod(where[name].shard_shape(shape)) for name, shape in shapes.items())

    def layers_of(self, moe: dict[str, Any]) -> dict[str, MoEStats]:
        """The MoE reports of a forward pass by layer name ("decoder.1", …), first to last."""
        named = {}
        for part in ("vision", "connector", "decoder"):  # a jitted function sorts its dicts
            if part not in moe:
                continue
            reports = moe[part]
            if part == "connector":
                named["connector"] = jax.tree.map(lambda a: a[0], reports[0][0])
                continue
            kinds = moe_layers(getattr(self.config, part).moe, getattr(self.config, part).depth)
            for i, report in enumerate(in_order(plan(kinds), reports)):
                if report is not None:
                    named[f"{part}.{i}"] = report
        return named

    def buffers(self) -> set[str]:
        """Names of what is saved but never optimized: router biases, hash tables."""
        return {name for name, v in self._variables().items() if isinstance(v, Buffer)}

    def rebalanced(self, params: Params, moe: dict[str, Any]) -> Params:
        """The router biases among `params` after a step with these MoE reports."""
        new = {}
        for part, segments in moe.items():
            rate = getattr(self.config, part).moe.bias_rate
            for name, report in _named(part, segments) if rate else ():
                name = f"{name}.bias"
                bias, routed = params[name], report.routed
                new[name] = rebalanced(
                    bias, routed.reshape(*bias.shape[:-1], *routed.shape[-2:]), rate
                )
        return new

    def num_parameters(self) -> int:
        """All parameters, buffers left out."""
        buffers = self.buffers()
        return sum(math.prod(s) for name, s in self.shapes().items() if name not in buffers)

    def num_active_parameters(self) -> int:
        """Those that one token meets: K of E experts in each MoE layer."""
        total, buffers = 0, self.buffers()
        for name, shape in self.shapes().items():
            if name in buffers:
                continue
            size = math.prod(shape)
            if ".experts." in name:
                options = getattr(self.config, name.split(".")[0]).moe
                if not options.traits.mixes:  # there, every token is in every slot
                    size = size * options.experts_per_token // options.num_experts
            total += size
        return total


def _named(part: str, segments: Any) -> Iterator[tuple[str, MoEStats]]:
    """The MoE modules of a part by dotted path, with their (stacked) reports."""
    for i, unit in enumerate(segments):
        for j, report in enumerate(unit):
            if report is not None:
                where = "" if part == "connector" else f".blocks.segments.{i}.{j}.mlp"
                yield part + where, report


def _make(c: config_lib.Model, vocab_size: int, key: jax.Array | int) -> VLM:
    return VLM(c, vocab_size, dtype=compute_dtype(c.dtype), rngs=nnx.Rngs(params=key))


def vocabulary(c: config_lib.Model, tokenizer_size: int) -> int:
    """V: what the config says, or the tokenizer's pieces rounded up to a multiple of 64."""
    return c.decoder.vocab_size or -(-tokenizer_size // 64) * 64
