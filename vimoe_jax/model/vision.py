"""The image tower: a ViT in SigLIP's form (Zhai et al. 2023): no class token, pre-norm, biases."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, UInt8

from vimoe_jax.config.model import Vision
from vimoe_jax.model.layers import MLP, Attention, LayerNorm
from vimoe_jax.model.stack import Stack
from vimoe_jax.model.tokens import NUM_KINDS, TokenKind
from vimoe_jax.moe.block import MoE
from vimoe_jax.moe.options import moe_layers
from vimoe_jax.parallel.parameters import fan_in, param
from vimoe_jax.parallel.rules import constrain

_EPS = 1e-6


class VisionBlock(nnx.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)), the MLP dense or MoE."""

    def __init__(
        self,
        c: Vision,
        is_moe: bool,
        num_patches: int,
        *,
        dtype: jnp.dtype,
        attention: str,
        rngs: nnx.Rngs,
    ):
        heads, scale = c.num_heads, (2 * c.depth) ** -0.5
        self.norm1 = LayerNorm(c.width, _EPS, rngs=rngs)
        self.attention = Attention(
            c.width,
            heads,
            heads,
            c.width // heads,
            bias=True,
            qk_norm_eps=None,
            dtype=dtype,
            rngs=rngs,
            out_scale=scale,
            implementation=attention,
        )
        self.norm2 = LayerNorm(c.width, _EPS, rngs=rngs)
        mlp = dict(activation="gelu_tanh", bias=True, dtype=dtype, rngs=rngs, out_scale=scale)
        if is_moe:
            self.mlp = MoE(c.moe, c.width, c.mlp_dim, c.width, **mlp, num_ids=num_patches)
        else:
            self.mlp = MLP(c.width, c.mlp_dim, c.width, **mlp)


class VisionTower(nnx.Module):
    """Patches, learned positions, blocks.

    The output is the last block's, *before* `post_norm`: what LLaVA feeds its connector. The norm
    is kept so that a SigLIP checkpoint survives the round trip whole.
    """

    def __init__(
        self,
        c: Vision,
        image_size: int,
        patch_size: int,
        *,
        dtype: jnp.dtype,
        attention: str,
        scan: dict[str, Any],
        rngs: nnx.Rngs,
    ):
        self.patch_size, self.dtype = patch_size, dtype
        pixels, patches = patch_size * patch_size * 3, (image_size // patch_size) ** 2
        self.patch = param(
            rngs, fan_in(pixels), (patch_size, patch_size, 3, c.width), (None, None, None, "embed")
        )
        self.patch_bias = param(rngs, nnx.initializers.zeros, (c.width,), (None,))
        self.positions = param(
            rngs, nnx.initializers.normal(0.02), (patches, c.width), (None, "embed")
        )
        self.blocks = Stack(
            moe_layers(c.moe, c.depth),
            lambda is_moe, rngs: VisionBlock(
                c, is_moe, patches, dtype=dtype, attention=attention, rngs=rngs
            ),
            **scan,
            rngs=rngs,
        )
        self.post_norm = LayerNorm(c.width, _EPS, rngs=rngs)

    @jax.named_scope("vision")
    def __call__(self, image: UInt8[Array, "B H W 3"], valid: Bool[Array, "B"], key=None):
        """Encodes pictures.

        Args:
          image: pixels 0 to 255, mapped to [-1, 1] as SigLIP does.
          valid: False for rows that are padding: they take no place in an expert.
          key: given in training only (router noise).

        Returns:
          Patch features (B, P, D) in `dtype`, and the MoE reports of `Stack`.
        """
        pixels = (image.astype(jnp.float32) / 127.5 - 1).astype(self.dtype)
        x = self._embed(pixels)
        shape = x.shape[:2]
        valid = jnp.broadcast_to(valid[:, None], shape)
        kind = jnp.full(shape, TokenKind.IMAGE, jnp.int32)
        ids = jnp.broadcast_to(jnp.arange(shape[1]), shape)

        def apply(block: VisionBlock, x, _, key):
            x = x + block.attention(block.norm1(x), None)[0]
            h, report = block.norm2(x), None
            if isinstance(block.mlp, MoE):
                h, report = block.mlp(h, valid, kind, num_kinds=NUM_KINDS, key=key, ids=ids)
            else:
                h = block.mlp(h)
            return constrain(x + h, ("batch", None, None)), None, report

        x, _, reports = self.blocks(apply, x, key=key)
        return x, reports

    def _embed(self, pixels: Float[Array, "B H W 3"]) -> Float[Array, "B P D"]:
        """The patch convolution as one matrix product, plus positions."""
        b, h, w, _ = pixels.shape
        p = self.patch_size
        x = pixels.reshape(b, h // p, p, w // p, p, 3).transpose(0, 1, 3, 2, 4, 5)
        x = x.reshape(b, (h // p) * (w // p), p * p * 3)
        kernel = self.patch[...].reshape(p * p * 3, -1).astype(self.dtype)
        x = x @ kernel + self.patch_bias[...].astype(self.dtype)
        return x + self.positions[...].astype(self.dtype)
