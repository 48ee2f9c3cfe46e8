"""Stock transformers' models with random weights, in the shape of a configuration of ours."""

import json

import numpy as np

from vimoe_jax.config.model import Model
from vimoe_jax.moe.options import moe_layers


def tower(c: Model, **more):
    """The `SiglipVisionConfig`."""
    import transformers

    v = c.vision
    values = dict(
        hidden_size=v.width, intermediate_size=v.mlp_dim, num_hidden_layers=v.depth,
        num_attention_heads=v.num_heads, image_size=c.image_size, patch_size=c.patch_size,
        vision_use_head=False,
    )  # fmt: skip
    return transformers.SiglipVisionConfig(**{**values, **more})


def text(c: Model, vocab_size: int, **more):
    """The decoder's configuration: Llama's without QK-norm, Qwen3's with, Qwen3-MoE's."""
    import transformers

    d = c.decoder
    values = dict(
        vocab_size=vocab_size, hidden_size=d.width, intermediate_size=d.mlp_dim,
        num_hidden_layers=d.depth, num_attention_heads=d.num_heads,
        num_key_value_heads=d.num_kv_heads, head_dim=d.head_dim,
        rope_parameters={"rope_type": "default", "rope_theta": d.rope_theta},
        rms_norm_eps=d.norm_eps, tie_word_embeddings=d.tie_embeddings, hidden_act="silu",
        pad_token_id=None, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    if d.moe.num_experts:
        kinds = moe_layers(d.moe, d.depth)
        values |= dict(
            num_experts=d.moe.experts, num_experts_per_tok=d.moe.k(train=False),
            moe_intermediate_size=d.moe.width(d.mlp_dim), norm_topk_prob=d.moe.renormalize,
            decoder_sparse_step=1, mlp_only_layers=[i for i, moe in enumerate(kinds) if not moe],
        )  # fmt: skip
        return transformers.Qwen3MoeConfig(**{**values, **more})
    kind = transformers.Qwen3Config if d.qk_norm else transformers.LlamaConfig
    return kind(**{**values, **more})


def scrambled(model):
    """The model with every parameter drawn anew: also norms and biases tell their axes then."""
    import torch

    torch.manual_seed(0)
    with torch.no_grad():
        for name, p in model.named_parameters():
            norm = p.ndim == 1 and name.endswith("weight")
            p.copy_(torch.randn_like(p) * (0.2 if p.ndim == 1 else p.shape[-1] ** -0.5) + norm)
    return model.eval()


def llava(c: Model, vocab_size: int, *, image_token: int = 4, text_more=None, **more):
    """The whole model, in evaluation mode."""
    import transformers

    config = transformers.LlavaConfig(
        vision_config=tower(c), text_config=text(c, vocab_size, **(text_more or {})),
        image_token_index=image_token, vision_feature_layer=-1,
        vision_feature_select_strategy="full", projector_hidden_act="gelu",
        image_seq_length=(c.image_size // c.patch_size) ** 2,
        tie_word_embeddings=c.decoder.tie_embeddings, **more,
    )  # fmt: skip
    return scrambled(transformers.LlavaForConditionalGeneration(config))


def tokenizer(folder, words=50):
    """Writes a `tokenizer.json`: pad 0, end 1, unknown 2, `<image>` 4, then "w0", "w1", …"""
    from tokenizers import Tokenizer, models, pre_tokenizers

    vocabulary = ["<pad>", "</s>", "<unk>", "<s>", "<image>", *(f"w{i}" for i in range(words))]
    model = models.WordLevel({w: i for i, w in enumerate(vocabulary)}, unk_token="<unk>")
    made = Tokenizer(model)
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.add_special_tokens(vocabulary[:5])
    made.save(str(folder / "tokenizer.json"))
    roles = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(roles))


def write_safetensors(folder, tensors, dtype=np.float32, name="model.safetensors"):
    """A safetensors file of NumPy arrays."""
    from safetensors.numpy import save_file

    arrays = {n: np.ascontiguousarray(np.asarray(t).astype(dtype)) for n, t in tensors.items()}
    save_file(arrays, folder / name, metadata={"format": "pt"})
