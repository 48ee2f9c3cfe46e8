"""The model's fields."""

from __future__ import annotations

from vimoe_jax.base.schema import at_least, checked, field, more_than, one_of
from vimoe_jax.moe.options import MoEOptions


@checked
class Vision:
    """The image tower: a ViT in SigLIP's form."""

    width: int = field(128, "D of the tower.", at_least(1))
    depth: int = field(4, "Layers.", at_least(1))
    num_heads: int = field(4, "Attention heads; must divide the width.", at_least(1))
    mlp_dim: int = field(512, "F, hidden width of a dense MLP.", at_least(1))
    moe: MoEOptions = field(MoEOptions(), "Experts in the tower.")


@checked
class Connector:
    """The two-layer GELU MLP between tower and decoder."""

    moe: MoEOptions = field(MoEOptions(placement="all"), "Experts in the connector.")


@checked
class Decoder:
    """The causal decoder, in Qwen3's form."""

    width: int = field(128, "D of the decoder.", at_least(1))
    depth: int = field(4, "Layers.", at_least(1))
    num_heads: int = field(4, "Query heads.", at_least(1))
    num_kv_heads: int = field(2, "Key and value heads; must divide the query heads.", at_least(1))
    head_dim: int = field(32, "N, width of a head; even, for rotary positions.", at_least(2))
    mlp_dim: int = field(384, "F, hidden width of a dense SwiGLU MLP.", at_least(1))
    vocab_size: int = field(0, "V; 0 takes the tokenizer's, rounded up to 64.", at_least(0))
    rope_theta: float = field(10000.0, "Base of the rotary frequencies.", more_than(0))
    norm_eps: float = field(1e-6, "Added to the variance in RMSNorm.", more_than(0))
    tie_embeddings: bool = field(True, "Use the token embedding as output head.")
    qk_norm: bool = field(True, "Norm queries and keys, as Qwen3 does; Llama does not.")
    moe: MoEOptions = field(MoEOptions(), "Experts in the decoder.")


@checked
class Model:
    """Image and tokens to logits."""

    image_size: int = field(64, "Pixels on a side; a multiple of the patch size.", at_least(1))
    patch_size: int = field(8, "Pixels on a side of a patch.", at_least(1))
    dtype: str = field(
        "auto",
        "Compute dtype; 'auto' is bfloat16 on accelerators, float32 on CPU.",
        one_of("auto", "float32", "bfloat16"),
    )
    attention: str = field(
        "auto",
        "Who computes attention: XLA, or cuDNN on NVIDIA GPUs; 'auto' takes cuDNN where it can.",
        one_of("auto", "xla", "cudnn"),
    )
    remat: str = field(
        "none",
        "What the backward pass computes again: nothing; all but costly operations (dots), or but "
        "matrix products without batch axes (dots_no_batch); all but what reached and left the "
        "experts (dispatch); each layer (full), its input waiting in the host's memory (offload).",
        one_of("none", "dots", "dots_no_batch", "dispatch", "full", "offload"),
    )
    unroll: int = field(
        1,
        "Repeats of a layer pattern compiled as one: more is faster to run, slower to compile.",
        at_least(1),
    )
    vision: Vision = field(Vision(), "The image tower.")
    connector: Connector = field(Connector(), "Between tower and decoder.")
    decoder: Decoder = field(Decoder(), "The language model.")

    @property
    def num_patches(self) -> int:
        """P, places of a picture."""
        return (self.image_size // self.patch_size) ** 2
