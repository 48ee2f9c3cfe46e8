"""A stock model's `config.json` as fields of our configuration, and what of it we cannot be."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from vimoe_jax.base.files import read_object
from vimoe_jax.moe.options import MoEOptions, moe_layers

Values = Mapping[str, Any]
DECODERS = ("qwen3", "qwen3_moe", "llama")
TOWERS = ("siglip", "siglip_vision_model")


@dataclasses.dataclass(frozen=True)
class Needs:
    """A field of theirs that decides what is computed, where we compute only one thing.

    Attributes:
      name: the field's, with dots for fields within fields.
      default: theirs, where the file does not say.
      fits: whether we compute that.
      means: what the field must be, in words.
    """

    name: str
    default: Any
    fits: Callable[[Any], bool]
    means: str


def _is(name: str, default: Any, *values: Any) -> Needs:
    return Needs(name, default, lambda v: v in values, " or ".join(map(repr, values)))


_UNQUANTIZED = _is("quantization_config", None, None)

_TOWER = (
    _is("hidden_act", "gelu_pytorch_tanh", "gelu_pytorch_tanh"),
    _is("layer_norm_eps", 1e-6, 1e-6),
    _is("num_channels", 3, 3),
    Needs("image_size", 224, lambda v: type(v) is int and v > 0, "one number"),
    Needs("patch_size", 16, lambda v: type(v) is int and v > 0, "one number"),
    _UNQUANTIZED,
)
_DECODER = (
    _is("hidden_act", "silu", "silu"),
    _is("attention_bias", False, False),
    _is("mlp_bias", False, False),
    _is("use_sliding_window", False, False),
    _is("partial_rotary_factor", 1.0, 1.0, None),
    _is("rope_parameters.partial_rotary_factor", 1.0, 1.0, None),
    _is("rope_parameters.rope_type", "default", "default", None),
    _is("rope_scaling.rope_type", "default", "default", None),
    _is("rope_scaling.type", "default", "default", None),
    Needs(
        "layer_types",
        None,
        lambda v: v is None or set(v) <= {"full_attention"},
        "'full_attention' in every layer",
    ),
    _UNQUANTIZED,
)
_LLAVA = (
    _is("projector_hidden_act", "gelu", "gelu"),
    _is("multimodal_projector_bias", True, True),
    _is("vision_feature_layer", -2, -1),
    _is("vision_feature_select_strategy", "default", "full"),
    _UNQUANTIZED,
)
_PROCESSOR = (
    _is("do_resize", True, True),
    _is("do_normalize", True, True),
    _is("do_rescale", True, True),
    Needs("rescale_factor", 1 / 255, lambda v: abs(v * 255 - 1) < 1e-6, "1/255"),
    Needs("image_mean", [0.5] * 3, lambda v: set(_list(v)) == {0.5}, "0.5"),
    Needs("image_std", [0.5] * 3, lambda v: set(_list(v)) == {0.5}, "0.5"),
)

# theirs -> (ours, their default)
_TOWER_SIZES = {
    "hidden_size": ("width", 768),
    "num_hidden_layers": ("depth", 12),
    "num_attention_heads": ("num_heads", 12),
    "intermediate_size": ("mlp_dim", 3072),
}
_DECODER_SIZES = {
    "hidden_size": ("width", {"qwen3_moe": 2048, "*": 4096}),
    "num_hidden_layers": ("depth", {"qwen3_moe": 24, "*": 32}),
    "num_attention_heads": ("num_heads", {"*": 32}),
    "num_key_value_heads": ("num_kv_heads", {"qwen3": 32, "qwen3_moe": 4, "*": None}),
    "head_dim": ("head_dim", {"qwen3": 128, "*": None}),
    "intermediate_size": ("mlp_dim", {"qwen3": 22016, "qwen3_moe": 6144, "*": 11008}),
    "vocab_size": ("vocab_size", {"llama": 32000, "*": 151936}),
    "rms_norm_eps": ("norm_eps", {"*": 1e-6}),
}


def tower(values: Values, where: str) -> tuple[dict[str, Any], list[str]]:
    """Fields of `model`, and complaints, from a `SiglipVisionConfig`.

    Args:
      values: of the file.
      where: what a complaint begins with ("DIR/config.json: vision_config.").
    """
    if "num_patches" in values or values.get("model_type", "").startswith("siglip2"):
        return {}, [
            f"{where}model_type: a NaFlex tower (pictures of any shape); "
            "take one of the fixed resolutions"
        ]
    sizes = {ours: values.get(theirs, default) for theirs, (ours, default) in _TOWER_SIZES.items()}
    square = {
        "image_size": values.get("image_size", 224),
        "patch_size": values.get("patch_size", 16),
    }
    return {"vision": sizes, **square}, [*_lacking(_TOWER, values, where), *_sizes(sizes, where)]


def decoder(values: Values, where: str) -> tuple[dict[str, Any], list[str]]:
    """Fields of `model.decoder`, and complaints, from a Qwen3, Qwen3-MoE or Llama config."""
    kind = values.get("model_type")
    if kind not in DECODERS:
        return {}, [f"{where}model_type: {kind!r}; decoders are {', '.join(DECODERS)}"]
    fields = {}
    for theirs, (ours, defaults) in _DECODER_SIZES.items():
        fields[ours] = values.get(theirs, defaults.get(kind, defaults["*"]))
    complaints = [*_lacking(_DECODER, values, where)]
    if not fields["num_kv_heads"]:
        fields["num_kv_heads"] = fields["num_heads"]
    if not fields["head_dim"] and fields["num_heads"]:
        fields["head_dim"] = fields["width"] // fields["num_heads"]
    rope = values.get("rope_parameters") or {}
    fields["rope_theta"] = float(rope.get("rope_theta") or values.get("rope_theta") or 10000.0)
    fields["qk_norm"] = kind != "llama"
    fields["tie_embeddings"] = bool(values.get("tie_word_embeddings", False))
    complaints += _sizes({k: fields[k] for k in ("width", "depth", "mlp_dim", "vocab_size")}, where)
    if kind == "qwen3_moe" and not complaints:
        fields["moe"] = _experts(values, fields["depth"])
    return fields, complaints


def _experts(values: Values, depth: int) -> dict[str, Any]:
    step, dense = values.get("decoder_sparse_step", 1), set(values.get("mlp_only_layers") or ())
    count = values.get("num_experts", values.get("num_local_experts", 128))
    chosen = tuple(i for i in range(depth) if count and not (i + 1) % step and i not in dense)
    if not chosen:
        return {}
    return {
        "num_experts": count,
        "experts_per_token": values.get("num_experts_per_tok", 8),
        "mlp_dim": values.get("moe_intermediate_size", 768),
        "renormalize": bool(values.get("norm_topk_prob", False)),
        "placement": _placement(chosen, depth),
    }


def _placement(chosen: tuple[int, ...], depth: int) -> str | tuple[int, ...]:
    """The shortest way to say which layers: as a configuration written by hand would."""
    words = ["all", *(f"{w}_{n}" for w in ("every", "last") for n in range(2, depth + 1)), "last_1"]
    for word in words:
        try:
            options = MoEOptions(num_experts=1, experts_per_token=1, placement=word)
            kinds = moe_layers(options, depth)
        except ValueError:
            continue
        if tuple(i for i, is_moe in enumerate(kinds) if is_moe) == chosen:
            return word
    return chosen


def llava(values: Values, where: str) -> list[str]:
    """Complaints about the fields of a `LlavaConfig` itself."""
    return [*_lacking(_LLAVA, values, where)]


def processor(folder: Path) -> tuple[dict[str, Any], list[str], list[str]]:
    """How a folder's image processor makes pictures square.

    Returns:
      `image_size` and `resize`, as far as there is a processor; complaints; notes.
    """
    values, path = {}, folder / "preprocessor_config.json"
    if path.exists():
        values = read_object(path)
    elif (folder / "processor_config.json").exists():
        path = folder / "processor_config.json"
        values = read_object(path).get("image_processor") or {}
    if not values:
        return {}, [], []
    complaints, notes = [*_lacking(_PROCESSOR, values, f"{path}: ")], []
    size, crop = values.get("size") or {}, values.get("crop_size") or {}
    size = {"height": size, "width": size} if isinstance(size, int) else size
    crop = {"height": crop, "width": crop} if isinstance(crop, int) else crop
    sides = crop if "shortest_edge" in size else size
    found = {}
    if sides:
        if sides.get("height") != sides.get("width") or not isinstance(sides.get("height"), int):
            complaints.append(f"{path}: size: must be a square of pixels, not {size!r}")
        found["image_size"] = sides.get("height")
    elif "shortest_edge" in size:
        complaints.append(f"{path}: size: pictures are not made square: {size!r} without crop_size")
    found["resize"] = "crop" if "shortest_edge" in size else "squash"
    if values.get("resample", 3) != 3:
        notes.append(f"{path}: resample = {values['resample']}; pictures are resized bicubically")
    return found, complaints, notes


def _list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [value]


def _lacking(needs: tuple[Needs, ...], values: Values, where: str) -> list[str]:
    complaints = []
    for need in needs:
        value: Any = values
        for name in need.name.split("."):
            value = value.get(name, need.default) if isinstance(value, Mapping) else need.default
        try:
            fits = need.fits(value)
        except TypeError:
            fits = False
        if not fits:
            said = "" if _said(values, need.name) else " (its default)"
            complaints.append(f"{where}{need.name}: {value!r}{said}; must be {need.means}")
    return complaints


def _said(values: Values, name: str) -> bool:
    return name.split(".")[0] in values


def _sizes(sizes: Values, where: str) -> list[str]:
    """Complaints about sizes that are no positive numbers."""
    theirs = {ours: name for name, (ours, _) in (_TOWER_SIZES | _DECODER_SIZES).items()}
    return [
        f"{where}{theirs.get(name, name)}: must be a positive number, not {value!r}"
        for name, value in sizes.items()
        if type(value) is not int or value < 1
    ]
