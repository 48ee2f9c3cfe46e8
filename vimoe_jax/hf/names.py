"""Our parameters and a stock LLaVA's tensors: one table, read in both directions.

A line of the table says where a parameter lies and how its axes are called, and the same of the
tensors in a file. What differs is only the order of the axes, which are merged ("(h n)") and which
are counted by the tensors' names ("{layer}", "{e}"): no line computes anything, so that both
directions are exact in every dtype.

    for piece in pieces(blueprint):                    # both ways, one tensor of a file at a time
        tensors[piece.hf] = piece.to_hf(params[piece.ours])        # export
        params[piece.ours][piece.index] = piece.to_ours(tensor)    # load

`canonical` turns the other spellings of a name into the table's; `homeless` lists the parameters
that no line knows, which a stock model cannot hold.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import re
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from vimoe_jax import config as config_lib
from vimoe_jax.config.parts import part_name, parts_of
from vimoe_jax.model.blueprint import Blueprint
from vimoe_jax.model.stack import layer_places


@dataclasses.dataclass(frozen=True)
class Line:
    """One line of the table: a parameter and its tensors.

    Attributes:
      ours: its path, without the place in the stack ("decoder.blocks.norm1.scale").
      axes: names of its axes, without the stacked layers'.
      hf: name of the file's tensors, with "{axis}" for axes that the name counts. "{layer}" is the
        layer's number.
      hf_axes: of one such tensor; axes in parentheses are merged, first ones slowest.
      counted: for an axis that is counted in words, its words.
    """

    ours: str
    axes: str
    hf: str
    hf_axes: str
    counted: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)


_TOWER = "vision_tower.vision_model."
_TOWER_LAYER = _TOWER + "encoder.layers.{layer}."
_DECODER = "language_model.model."
_LAYER = _DECODER + "layers.{layer}."
_GATED = {"i": ("gate", "up")}


def _attention(part: str, layer: str, *, bias: bool, out: str) -> tuple[Line, ...]:
    """Queries, keys, values and output of one form of layer."""
    lines = []
    for name in ("q", "k", "v"):
        ours, hf = f"{part}.blocks.attention.{name}", f"{layer}self_attn.{name}_proj"
        lines.append(Line(ours, "d h n", f"{hf}.weight", "(h n) d"))
        if bias:
            lines.append(Line(f"{ours}_bias", "h n", f"{hf}.bias", "(h n)"))
    ours, hf = f"{part}.blocks.attention.out", f"{layer}self_attn.{out}"
    lines.append(Line(ours, "h n d", f"{hf}.weight", "d (h n)"))
    if bias:
        lines.append(Line(f"{ours}_bias", "d", f"{hf}.bias", "d"))
    return tuple(lines)


def _gelu(
    ours: str, hf: str, first: str, second: str, *, experts: bool = False
) -> tuple[Line, ...]:
    """A two-layer MLP with biases, or the experts that are such MLPs."""
    e = "e " if experts else ""
    return (
        Line(f"{ours}.w_in", f"{e}d i f", f"{hf}{first}.weight", "(i f) d"),
        Line(f"{ours}.b_in", f"{e}i f", f"{hf}{first}.bias", "(i f)"),
        Line(f"{ours}.w_out", f"{e}f o", f"{hf}{second}.weight", "o f"),
        Line(f"{ours}.b_out", f"{e}o", f"{hf}{second}.bias", "o"),
    )


def _layer_norm(ours: str, hf: str) -> tuple[Line, ...]:
    return (
        Line(f"{ours}.scale", "d", f"{hf}.weight", "d"),
        Line(f"{ours}.bias", "d", f"{hf}.bias", "d"),
    )


_PROJECTOR = "multi_modal_projector."
_EXPERT = "experts.{e}."

TABLE: tuple[Line, ...] = (
    # The tower: siglip_vision_model.
    Line("vision.patch", "y x c d", f"{_TOWER}embeddings.patch_embedding.weight", "d c y x"),
    Line("vision.patch_bias", "d", f"{_TOWER}embeddings.patch_embedding.bias", "d"),
    Line("vision.positions", "p d", f"{_TOWER}embeddings.position_embedding.weight", "p d"),
    *_layer_norm("vision.blocks.norm1", f"{_TOWER_LAYER}layer_norm1"),
    *_layer_norm("vision.blocks.norm2", f"{_TOWER_LAYER}layer_norm2"),
    *_attention("vision", _TOWER_LAYER, bias=True, out="out_proj"),
    *_gelu("vision.blocks.mlp", f"{_TOWER_LAYER}mlp.", "fc1", "fc2"),
    *_layer_norm("vision.post_norm", f"{_TOWER}post_layernorm"),
    # The connector.
    *_gelu("connector", _PROJECTOR, "linear_1", "linear_2"),
    # The decoder: qwen3, llama (which has no norms of queries and keys), qwen3_moe.
    Line("decoder.embedding", "v d", f"{_DECODER}embed_tokens.weight", "v d"),
    Line("decoder.blocks.norm1.scale", "d", f"{_LAYER}input_layernorm.weight", "d"),
    Line("decoder.blocks.norm2.scale", "d", f"{_LAYER}post_attention_layernorm.weight", "d"),
    *_attention("decoder", _LAYER, bias=False, out="o_proj"),
    Line("decoder.blocks.attention.q_norm.scale", "n", f"{_LAYER}self_attn.q_norm.weight", "n"),
    Line("decoder.blocks.attention.k_norm.scale", "n", f"{_LAYER}self_attn.k_norm.weight", "n"),
    Line("decoder.blocks.mlp.w_in", "d i f", f"{_LAYER}mlp.{{i}}_proj.weight", "f d", _GATED),
    Line("decoder.blocks.mlp.w_out", "f d", f"{_LAYER}mlp.down_proj.weight", "d f"),
    Line("decoder.blocks.mlp.router", "d e", f"{_LAYER}mlp.gate.weight", "e d"),
    Line(
        "decoder.blocks.mlp.experts.w_in", "e d i f",
        f"{_LAYER}mlp.{_EXPERT}{{i}}_proj.weight", "f d", _GATED,
    ),
    Line(
        "decoder.blocks.mlp.experts.w_out", "e f d",
        f"{_LAYER}mlp.{_EXPERT}down_proj.weight", "d f",
    ),
    Line("decoder.norm.scale", "d", f"{_DECODER}norm.weight", "d"),
    Line("decoder.head", "v d", "language_model.lm_head.weight", "v d"),
)  # fmt: skip

# Experts as they lie in memory, and in files of some versions: all of a layer in one tensor.
FUSED_EXPERTS: tuple[Line, ...] = (
    Line(
        "decoder.blocks.mlp.experts.w_in", "e d i f",
        f"{_LAYER}mlp.experts.gate_up_proj", "e (i f) d",
    ),
    Line(
        "decoder.blocks.mlp.experts.w_out", "e f d", f"{_LAYER}mlp.experts.down_proj", "e d f",
    ),
)  # fmt: skip

# Experts where stock models have none: the names of our own modelling file.
OWN: tuple[Line, ...] = (
    Line("vision.blocks.mlp.router", "d e", f"{_TOWER_LAYER}mlp.gate.weight", "e d"),
    *_gelu("vision.blocks.mlp.experts", f"{_TOWER_LAYER}mlp.{_EXPERT}", "fc1", "fc2", experts=True),
    Line("connector.router", "d e", f"{_PROJECTOR}gate.weight", "e d"),
    *_gelu("connector.experts", _PROJECTOR + _EXPERT, "linear_1", "linear_2", experts=True),
)

# The towers of big_vision's `.npz` files, whose names are given without "params/img/".
_BLOCK = "Transformer/encoderblock_{layer}/"


def _big_vision_attention() -> tuple[Line, ...]:
    ours, file = "vision.blocks.attention", _BLOCK + "MultiHeadDotProductAttention_0"
    lines = []
    for name, theirs in (("q", "query"), ("k", "key"), ("v", "value")):
        lines.append(Line(f"{ours}.{name}", "d h n", f"{file}/{theirs}/kernel", "d h n"))
        lines.append(Line(f"{ours}.{name}_bias", "h n", f"{file}/{theirs}/bias", "h n"))
    return (
        *lines,
        Line(f"{ours}.out", "h n d", f"{file}/out/kernel", "h n d"),
        Line(f"{ours}.out_bias", "d", f"{file}/out/bias", "d"),
    )


def _flax_norm(ours: str, file: str) -> tuple[Line, ...]:
    return (
        Line(f"{ours}.scale", "d", f"{file}/scale", "d"),
        Line(f"{ours}.bias", "d", f"{file}/bias", "d"),
    )


BIG_VISION: tuple[Line, ...] = (
    Line("vision.patch", "y x c d", "embedding/kernel", "y x c d"),
    Line("vision.patch_bias", "d", "embedding/bias", "d"),
    Line("vision.positions", "p d", "pos_embedding", "p d"),
    *_flax_norm("vision.blocks.norm1", f"{_BLOCK}LayerNorm_0"),
    *_flax_norm("vision.blocks.norm2", f"{_BLOCK}LayerNorm_1"),
    *_big_vision_attention(),
    Line("vision.blocks.mlp.w_in", "d i f", f"{_BLOCK}MlpBlock_0/Dense_0/kernel", "d (i f)"),
    Line("vision.blocks.mlp.b_in", "i f", f"{_BLOCK}MlpBlock_0/Dense_0/bias", "(i f)"),
    Line("vision.blocks.mlp.w_out", "f o", f"{_BLOCK}MlpBlock_0/Dense_1/kernel", "f o"),
    Line("vision.blocks.mlp.b_out", "o", f"{_BLOCK}MlpBlock_0/Dense_1/bias", "o"),
    *_flax_norm("vision.post_norm", "Transformer/encoder_norm"),
)

# Spellings of the beginning of a name, and the table's.
_SPELLINGS: tuple[tuple[str, str], ...] = (
    (r"^model\.(?=vision_tower\.|multi_modal_projector\.|language_model\.)", ""),
    (r"^vision_model\.", _TOWER),
    (r"^vision_tower\.(?!vision_model\.)", _TOWER),
    (r"^(?=embeddings\.|encoder\.layers\.|post_layernorm\.|head\.)", _TOWER),
    (r"^lm_head\.", "language_model.lm_head."),
    (r"^(?=embed_tokens\.|layers\.|norm\.)", _DECODER),
    (r"^model\.(?=embed_tokens\.|layers\.|norm\.)", _DECODER),
    (r"^language_model\.(?=embed_tokens\.|layers\.|norm\.)", _DECODER),
)


def canonical(name: str) -> str:
    """The table's spelling of a tensor's name, for all of:

    towers and decoders alone (`vision_model.…`, `model.layers.…`), within a LLaVA, with and without
    `vision_model.`, and as they are called in memory (`model.language_model.…`).

    >>> canonical("model.vision_tower.post_layernorm.bias")
    'vision_tower.vision_model.post_layernorm.bias'
    >>> canonical("model.layers.3.mlp.up_proj.weight")
    'language_model.model.layers.3.mlp.up_proj.weight'
    """
    for pattern, beginning in _SPELLINGS:
        name = re.sub(pattern, beginning, name)
    return name


@dataclasses.dataclass(frozen=True)
class Piece:
    """One tensor of a file, and where it lies in one of our parameters.

    Attributes:
      ours: the parameter's path.
      index: which piece of the parameter the tensor is: `params[ours][index]`.
      axes: names of that piece's axes ("v" is the vocabulary, "p" the patches).
      part: the shape of that piece.
      hf: the tensor's name.
      shape: the tensor's shape.
      order: of the piece's axes in the tensor, before merging.
    """

    ours: str
    index: tuple[int | slice, ...]
    axes: tuple[str, ...]
    part: tuple[int, ...]
    hf: str
    shape: tuple[int, ...]
    order: tuple[int, ...]

    def to_hf(self, parameter: np.ndarray) -> np.ndarray:
        """The file's tensor out of the whole parameter (NumPy's or JAX's array)."""
        return parameter[self.index].transpose(self.order).reshape(self.shape)

    def to_ours(self, tensor: np.ndarray) -> np.ndarray:
        """What `params[ours][index]` is, a view of the file's tensor where possible."""
        split = tensor.reshape([self.part[i] for i in self.order])
        return split.transpose(np.argsort(self.order))


def pieces(
    blueprint: Blueprint, *, fused_experts: bool = False, table: Sequence[Line] = (*TABLE, *OWN)
) -> Iterator[Piece]:
    """All tensors of a model's file, parameter by parameter; homeless parameters are left out.

    Args:
      blueprint: the model.
      fused_experts: with the experts of a layer as one tensor, instead of one per expert.
      table: the names of another file format.
    """
    lines = {line.ours: line for line in (*table, *(FUSED_EXPERTS if fused_experts else ()))}
    for name, shape in blueprint.shapes().items():
        path, layers = _place(blueprint.config, name)
        line = lines.get(path)
        if line is not None:
            yield from _pieces(line, name, shape, layers)


def homeless(blueprint: Blueprint, *, stock: bool = True) -> list[str]:
    """Parameters that have no name in a file.

    Args:
      blueprint: the model.
      stock: count what only our own modelling file has as homeless, too.
    """
    lines = {line.ours for line in (TABLE if stock else (*TABLE, *OWN))}
    return [n for n in blueprint.shapes() if _place(blueprint.config, n)[0] not in lines]


_STACKED = re.compile(r"((\w+)\.blocks)\.segments\.\d+\.\d+\.(.*)")


def _place(c: config_lib.Model, name: str) -> tuple[str, list[int] | None]:
    """A parameter's path without its place in the stack, and the numbers of the layers in it."""
    found = _STACKED.fullmatch(name)
    if found is None:
        return name, None
    places = layer_places(parts_of(c)[part_name(name)])
    module = name.removesuffix(f".{found[3]}")
    layers = [i for i, (where, _) in enumerate(places) if where == module]
    return f"{found[1]}.{found[3]}", layers


def _pieces(
    line: Line, name: str, shape: tuple[int, ...], layers: list[int] | None
) -> Iterator[Piece]:
    """The tensors of one parameter."""
    axes = line.axes.split()
    sizes = dict(zip(axes, shape if layers is None else shape[1:], strict=True))
    groups = [g.strip("()").split() for g in re.findall(r"\([^)]*\)|\S+", line.hf_axes)]
    inside = [axis for axis in axes if axis in itertools.chain(*groups)]
    counted = [axis for axis in axes if axis not in inside]
    numbers = [range(sizes[axis]) for axis in counted]
    order = tuple(inside.index(axis) for group in groups for axis in group)
    for repeat, layer in enumerate(layers) if layers is not None else ((None, None),):
        for where in itertools.product(*numbers):
            at = dict(zip(counted, where, strict=True))
            words = {a: line.counted[a][n] if a in line.counted else n for a, n in at.items()}
            yield Piece(
                ours=name,
                index=(() if repeat is None else (repeat,))
                + tuple(at.get(axis, slice(None)) for axis in axes),
                axes=tuple(inside),
                part=tuple(sizes[axis] for axis in inside),
                hf=line.hf.format(layer=layer, **words),
                shape=tuple(math.prod(sizes[axis] for axis in group) for group in groups),
                order=order,
            )
