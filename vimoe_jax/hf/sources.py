"""What a path holds: a LLaVA, a tower, a decoder, a big_vision tower, or a workdir of ours."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vimoe_jax import config as config_lib
from vimoe_jax.base import schema
from vimoe_jax.base.errors import UserError
from vimoe_jax.base.files import read_object
from vimoe_jax.config.parts import PARTS
from vimoe_jax.hf import names, settings
from vimoe_jax.hf.readers import BigVision, Reader, Safetensors

# Of a tower's file: SigLIP's text tower, its loss, and the head that pools patches into one vector;
# a LLaVA has no use for them. Of others: what is computed, not learned.
_LEFT_OUT = re.compile(
    r"text_model\..*|logit_(scale|bias)|vision_tower\.vision_model\.head\..*|MAPHead_0/.*"
    r"|(pre_logits|head)/.*|.*\.position_ids|.*\.rotary_emb\.inv_freq"
)
_TIED = "language_model.lm_head.weight"


@dataclasses.dataclass
class Source:
    """One place that parameters come from.

    Attributes:
      where: the path as given.
      parts: which of "vision", "connector", "decoder" it holds.
      model: fields of `config.model` that it fixes.
      reader: of its tensors; None for a workdir of ours.
      table: names of its tensors.
      fused_experts: whether a layer's experts are one tensor.
      left_out: tensors that are not read on purpose.
      resize: how its processor makes pictures square, if it has one.
      image_size: of its processor, if it has one.
      tokenizer: the folder of its tokenizer, if it has one.
      image_token: id of the token that stands for a picture, if it says.
      complaints: why it cannot be read.
      notes: what will be different.
    """

    where: Path
    parts: tuple[str, ...]
    model: dict[str, Any]
    reader: Reader | None = None
    table: Sequence[names.Line] = names.TABLE
    fused_experts: bool = False
    left_out: set[str] = dataclasses.field(default_factory=set)
    resize: str | None = None
    image_size: int | None = None
    tokenizer: Path | None = None
    image_token: int | None = None
    complaints: list[str] = dataclasses.field(default_factory=list)
    notes: list[str] = dataclasses.field(default_factory=list)


def open_source(path: Path) -> Source:
    """Looks at a path; reads no tensor yet.

    Raises:
      UserError: it is none of the formats that can be read.
    """
    if path.suffix == ".npz":
        return _big_vision(path)
    if not path.is_dir():
        raise UserError(f"--source: {path}: neither a folder nor an .npz file")
    if not (path / "config.json").exists():
        raise UserError(f"--source: {path}: has no config.json")
    values = read_object(path / "config.json")
    if "model_type" not in values and "model" in values:
        return _workdir(path)
    kind, where = values.get("model_type"), f"{path / 'config.json'}: "
    if kind == "llava":
        source = _llava(path, values, where)
    elif kind in settings.TOWERS or str(kind).startswith("siglip2"):
        inner = values.get("vision_config") if "vision_config" in values else values
        model, complaints = settings.tower(inner or {}, where)
        source = Source(path, ("vision",), model, complaints=complaints)
    elif kind in settings.DECODERS:
        fields, complaints = settings.decoder(values, where)
        source = Source(path, ("decoder",), {"decoder": fields}, complaints=complaints)
    else:
        known = ", ".join(("llava", *settings.TOWERS, *settings.DECODERS))
        raise UserError(f"{where}model_type: {kind!r}; known are {known}")
    return _with_files(source)


def _llava(path: Path, values: dict[str, Any], where: str) -> Source:
    vision, text = (values.get(f"{n}_config") or {} for n in ("vision", "text"))
    complaints = settings.llava(values, where)
    kind = vision.get("model_type")
    if kind not in settings.TOWERS and not str(kind).startswith("siglip2"):
        complaints.append(f"{where}vision_config.model_type: {kind!r}; must be siglip_vision_model")
        model = {}
    else:
        model, more = settings.tower(vision, f"{where}vision_config.")
        complaints += more
    fields, more = settings.decoder(text, f"{where}text_config.")
    if "tie_word_embeddings" in values:
        fields["tie_embeddings"] = bool(values["tie_word_embeddings"])
    complaints += more
    token = values.get("image_token_index", values.get("image_token_id"))
    return Source(
        path,
        PARTS,
        {**model, "decoder": fields},
        image_token=token,
        complaints=complaints,
    )


def _with_files(source: Source) -> Source:
    """Adds tensors, tokenizer and processor of a folder."""
    path = source.where
    source.reader = reader = Safetensors(path)
    source.fused_experts = any(n.endswith("mlp.experts.gate_up_proj") for n in reader.shapes)
    source.left_out = {name for name in reader.shapes if _LEFT_OUT.fullmatch(name)}
    if "decoder" in source.parts:
        fields = source.model["decoder"]
        if "connector" in source.parts and _TIED not in reader.shapes:
            # Older versions have it in the decoder's section of the file only.
            text = read_object(path / "config.json").get("text_config") or {}
            fields["tie_embeddings"] |= bool(text.get("tie_word_embeddings"))
        if fields.get("tie_embeddings"):
            source.left_out |= {_TIED} & reader.shapes.keys()
        if any((path / n).exists() for n in ("tokenizer.json", "tokenizer.model")):
            source.tokenizer = path
    if "vision" in source.parts:
        found, complaints, notes = settings.processor(path)
        source.resize, source.image_size = found.get("resize"), found.get("image_size")
        source.complaints += complaints
        source.notes += notes
    return source


def _big_vision(path: Path) -> Source:
    """The tower's sizes are those of its arrays."""
    reader = BigVision(path)
    shapes = reader.shapes
    source = Source(path, ("vision",), {}, reader, names.BIG_VISION)
    source.left_out = {name for name in shapes if _LEFT_OUT.fullmatch(name)}
    wanted = {
        "embedding/kernel": 4,
        "pos_embedding": 2,
        "Transformer/encoderblock_0/MlpBlock_0/Dense_0/kernel": 2,
        "Transformer/encoderblock_0/MultiHeadDotProductAttention_0/query/kernel": 3,
    }
    for name, axes in wanted.items():
        if len(shapes.get(name, ())) != axes:
            source.complaints.append(f"{path}: {name}: no such array of {axes} axes")
    if "cls" in shapes:
        source.complaints.append(f"{path}: cls: a tower with a class token")
    if source.complaints:
        return source
    patch, _, _, width = shapes["embedding/kernel"]
    places = shapes["pos_embedding"][0]
    numbers = [re.match(r"Transformer/encoderblock_(\d+)/", name) for name in shapes]
    heads = shapes[list(wanted)[3]][1]
    source.model = {
        "patch_size": patch,
        "image_size": math.isqrt(places) * patch,
        "vision": {
            "width": width,
            "depth": 1 + max(int(m[1]) for m in numbers if m),
            "num_heads": heads,
            "mlp_dim": shapes[list(wanted)[2]][1],
        },
    }
    if math.isqrt(places) ** 2 != places:
        source.complaints.append(f"{path}: pos_embedding: {places} places are no square")
    return source


def _workdir(path: Path) -> Source:
    model = schema.to_dict(config_lib.from_json(path / "config.json").model)
    kept = ("image_size", "patch_size", *PARTS)
    source = Source(path, PARTS, {k: model[k] for k in kept})
    source.tokenizer = path
    return source
