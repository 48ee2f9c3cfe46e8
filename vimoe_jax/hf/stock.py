"""Our configuration as a stock model's `config.json`, and what no stock model can be."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from vimoe_jax import config as config_lib
from vimoe_jax.base.errors import UserError
from vimoe_jax.config import Config
from vimoe_jax.config.parts import parts_of
from vimoe_jax.hf.names import homeless
from vimoe_jax.model.blueprint import Blueprint
from vimoe_jax.moe.options import MoEOptions, moe_layers
from vimoe_jax.text.tokenizers import Tokenizer

_ROUTER = "top_k"  # the one that stock models with experts have


def check(c: Config, blueprint: Blueprint) -> None:
    """Refuses what neither a stock model nor our own modelling file computes.

    Raises:
      UserError: names the field.
    """
    for complaint in _complaints(c):
        raise UserError(f"config.{complaint}")
    if lost := homeless(blueprint, stock=False):
        raise UserError(f"parameter {lost[0]}: has no place in a Hugging Face model")


def _complaints(c: Config) -> Iterator[str]:
    if c.data.resize != "squash":
        yield (
            f"data.resize: {c.data.resize!r} is nothing that SiglipImageProcessor does; "
            "only 'squash' can be exported"
        )
    for part in parts_of(c.model).values():
        moe = part.moe
        if not part.has_experts:
            continue
        field = f"model.{part.name}.moe"
        if moe.router != _ROUTER:
            yield f"{field}.router: {moe.router!r} cannot be exported; only {_ROUTER!r} can"
        if moe.shared_experts:
            yield f"{field}.shared_experts: {moe.shared_experts} cannot be exported; only 0 can"
        if moe.bias_rate:
            yield (
                f"{field}.bias_rate: {moe.bias_rate} cannot be exported: no stock model chooses "
                "experts with a bias; only 0 can"
            )
    d = c.model.decoder
    if d.moe.num_experts and not d.qk_norm:
        yield "model.decoder.qk_norm: False cannot be exported with experts: qwen3_moe has the norm"


def needs_code(c: config_lib.Model) -> bool:
    """Whether our own modelling file must come along."""
    return bool(c.vision.moe.num_experts or c.connector.moe.num_experts)


def model_config(c: Config, vocab_size: int, tokenizer: Tokenizer, dtype: str) -> dict[str, Any]:
    """`config.json`.

    Args:
      c: passed `check`.
      vocab_size: V, rows of the embedding.
      tokenizer: whose ids the model works with.
      dtype: of the weights in the files.
    """
    m = c.model
    own = {
        "model_type": "vimoe",
        "architectures": ["ViMoEForConditionalGeneration"],
        "auto_map": {
            "AutoConfig": "configuration_vimoe.ViMoEConfig",
            "AutoModelForImageTextToText": "modeling_vimoe.ViMoEForConditionalGeneration",
        },
        "experts": _own_experts(m),
    }
    stock = {"model_type": "llava", "architectures": ["LlavaForConditionalGeneration"]}
    return {
        **(own if needs_code(m) else stock),
        "dtype": dtype,
        "image_token_index": tokenizer.image_id,
        "image_seq_length": m.num_patches,
        "vision_feature_layer": -1,
        "vision_feature_select_strategy": "full",
        "projector_hidden_act": "gelu",
        "multimodal_projector_bias": True,
        "tie_word_embeddings": m.decoder.tie_embeddings,
        **special_ids(tokenizer),
        "vision_config": _vision(m),
        "text_config": _text(c, vocab_size, tokenizer),
    }


def special_ids(tokenizer: Tokenizer) -> dict[str, int | None]:
    """Ids that end, fill and begin a text."""
    return {
        "eos_token_id": tokenizer.eos_id,
        "pad_token_id": tokenizer.pad_id,
        "bos_token_id": tokenizer.bos_id,
    }


def _vision(m: config_lib.Model) -> dict[str, Any]:
    v = m.vision
    return {
        "model_type": "siglip_vision_model",
        "hidden_size": v.width,
        "intermediate_size": v.mlp_dim,
        "num_hidden_layers": v.depth,
        "num_attention_heads": v.num_heads,
        "image_size": m.image_size,
        "patch_size": m.patch_size,
        "num_channels": 3,
        "hidden_act": "gelu_pytorch_tanh",
        "layer_norm_eps": 1e-6,
        "attention_dropout": 0.0,
        "vision_use_head": False,
    }


def _text(c: Config, vocab_size: int, tokenizer: Tokenizer) -> dict[str, Any]:
    d, moe = c.model.decoder, c.model.decoder.moe
    places = c.data.max_pictures * c.model.num_patches
    asked = c.data.prompt_length + c.eval.max_new_tokens
    text = {
        "model_type": "qwen3" if d.qk_norm else "llama",
        "vocab_size": vocab_size,
        "hidden_size": d.width,
        "intermediate_size": d.mlp_dim,
        "num_hidden_layers": d.depth,
        "num_attention_heads": d.num_heads,
        "num_key_value_heads": d.num_kv_heads,
        "head_dim": d.head_dim,
        "hidden_act": "silu",
        "rms_norm_eps": d.norm_eps,
        "rope_parameters": {"rope_theta": d.rope_theta, "rope_type": "default"},
        "max_position_embeddings": places + max(c.data.text_length, asked),
        "attention_bias": False,
        "attention_dropout": 0.0,
        "tie_word_embeddings": d.tie_embeddings,
        "use_cache": True,
        **special_ids(tokenizer),
    }
    if moe.num_experts:
        text |= {"model_type": "qwen3_moe", "output_router_logits": False}
        text |= {**_routing(moe, d.mlp_dim, "moe_intermediate_size"), **_placement(c.model)}
    return text


def _routing(moe: MoEOptions, dense: int, width: str) -> dict[str, Any]:
    return {
        "num_experts": moe.experts,
        "num_experts_per_tok": moe.k(train=False),
        "norm_topk_prob": moe.renormalize,
        width: moe.width(dense),
    }


def _placement(m: config_lib.Model) -> dict[str, Any]:
    """Qwen3-MoE's way to say which layers have experts."""
    layers = moe_layers(m.decoder.moe, m.decoder.depth)
    for step in range(1, len(layers) + 1):
        if layers == tuple((i + 1) % step == 0 for i in range(len(layers))):
            return {"decoder_sparse_step": step, "mlp_only_layers": []}
    dense = [i for i, is_moe in enumerate(layers) if not is_moe]
    return {"decoder_sparse_step": 1, "mlp_only_layers": dense}


def _own_experts(m: config_lib.Model) -> dict[str, Any]:
    """`experts` of our own modelling file."""
    own = {}
    if m.vision.moe.num_experts:
        layers = moe_layers(m.vision.moe, m.vision.depth)
        own["vision"] = {
            **_routing(m.vision.moe, m.vision.mlp_dim, "intermediate_size"),
            "layers": [i for i, is_moe in enumerate(layers) if is_moe],
        }
    if m.connector.moe.num_experts:
        own["connector"] = _routing(m.connector.moe, m.decoder.width, "intermediate_size")
    return own
