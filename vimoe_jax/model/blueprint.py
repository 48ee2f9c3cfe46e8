"""A model apart from its numbers: what checkpoints, optimizers, sharding and converters work with.

Parameters travel as one flat dict from dotted path to array, `{"decoder.norm.scale": …}`; the
blueprint turns such a dict into a callable `VLM` and knows each parameter's shape and logical axes.
"""

from __future__ import annotations

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import NamedSharding

from vimoe_jax import config as config_lib
from vimoe_jax.config.parts import Part, PartName, part_name, parts_of
from vimoe_jax.model.stack import layer_places
from vimoe_jax.model.vlm import VLM, Reports, compute_dtype
from vimoe_jax.moe.block import rebalance_bias
from vimoe_jax.moe.report import MoEReport
from vimoe_jax.parallel import rules
from vimoe_jax.parallel.parameters import Buffer
from vimoe_jax.parallel.rules import AnyMesh

Params = dict[str, jax.Array]


@dataclasses.dataclass(frozen=True, eq=False)
class Blueprint:
    """Structure of a model; `model(params)` gives the model itself."""

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

    def init(self, key: jax.Array, mesh: AnyMesh | None = None) -> Params:
        """Random parameters, born sharded if a mesh is given; the same whatever the mesh."""

        def flat(key: jax.Array) -> Params:
            state = nnx.state(_make(self.config, self.vocab_size, key))
            return {".".join(map(str, path)): v[...] for path, v in nnx.to_flat_state(state)}

        return jax.jit(flat, out_shardings=None if mesh is None else self.shardings(mesh))(key)

    def model(self, params: Params) -> VLM:
        """The model with these parameters, cast as layers use them (also while tracing)."""
        return self.build(self.cast(params))

    def build(self, params: Params) -> VLM:
        """The model with these parameters as they are (also while tracing)."""
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

    def abstract(self, mesh: AnyMesh) -> dict[str, jax.ShapeDtypeStruct]:
        """Shape, dtype and sharding of every parameter on a mesh."""
        where = self.shardings(mesh)
        return {
            name: jax.ShapeDtypeStruct(v.shape, v.dtype, sharding=where[name])
            for name, v in self._variables().items()
        }

    def shardings(
        self, mesh: AnyMesh, over: rules.MeshAxes = rules.KEPT
    ) -> dict[str, NamedSharding]:
        """Sharding of every parameter on a mesh; `over` as in `rules.spec`."""
        axes = self.axes()
        return {n: rules.sharding(axes[n], s, mesh, over) for n, s in self.shapes().items()}

    def held(self, mesh: AnyMesh, over: rules.MeshAxes = rules.KEPT) -> int:
        """How many parameters a device holds; `over` as in `rules.spec`."""
        where, shapes = self.shardings(mesh, over), self.shapes()
        return sum(math.prod(where[name].shard_shape(shape)) for name, shape in shapes.items())

    @functools.cached_property
    def parts(self) -> dict[PartName, Part]:
        """Tower, connector and decoder."""
        return parts_of(self.config)

    def layers_of(self, reports: Reports) -> dict[str, MoEReport]:
        """A forward pass's MoE reports by layer name ("decoder.1", …), first to last."""
        named = {}
        for name, part in self.parts.items():  # a jitted function sorts its dicts
            for i, layer in enumerate(part.moe_names() if name in reports else ()):
                named[layer] = jax.tree.map(lambda a, i=i: a[i], reports[name])
        return named

    def buffers(self) -> set[str]:
        """Names of what is saved but never optimized: router biases, hash tables."""
        return {name for name, v in self._variables().items() if isinstance(v, Buffer)}

    def rebalanced(self, params: Params, reports: Reports) -> Params:
        """The router biases among `params` after a step with these MoE reports."""
        new = {}
        for name, report in reports.items():
            if rate := self.parts[name].moe.bias_rate:
                routed = jnp.asarray(report.routed)
                for module, layers in self._moe_modules(name).items():
                    bias = params[f"{module}.bias"]
                    mine = routed[np.asarray(layers)].reshape(*bias.shape[:-1], *routed.shape[-2:])
                    new[f"{module}.bias"] = rebalance_bias(bias, mine, rate)
        return new

    def _moe_modules(self, name: PartName) -> dict[str, list[int]]:
        """The MoE modules of a part by dotted path, with the numbers of their reports."""
        part, found = self.parts[name], {}
        places = zip(layer_places(part), part.moe_layers(), strict=True)
        layers = [module for (module, _), is_moe in places if is_moe]
        for number, module in enumerate(layers):
            path = module if name == "connector" else f"{module}.mlp"
            found.setdefault(path, []).append(number)
        return found

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
                options = self.parts[part_name(name)].moe
                if not options.traits.mixes:  # there, every token is in every slot
                    size = size * options.experts_per_token // options.num_experts
            total += size
        return total


def _make(c: config_lib.Model, vocab_size: int, key: jax.Array | int) -> VLM:
    return VLM(c, vocab_size, dtype=compute_dtype(c.dtype), rngs=nnx.Rngs(params=key))


def vocabulary(c: config_lib.Model, tokenizer_size: int) -> int:
    """V: what the config says, or the tokenizer's pieces rounded up to a multiple of 64."""
    return c.decoder.vocab_size or -(-tokenizer_size // 64) * 64
