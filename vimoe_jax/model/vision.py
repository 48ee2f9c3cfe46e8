"""The image tower: a ViT in SigLIP's form (Zhai et al. 2023): no class token, pre-norm, biases."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, UInt8

from vimoe_jax.config.model import Vision
from vimoe_jax.model.block import Block, BlockShape
from vimoe_jax.model.layers import LayerNorm
from vimoe_jax.model.stack import Stack
from vimoe_jax.model.tokens import Places
from vimoe_jax.moe.options import moe_layers
from vimoe_jax.moe.report import MoEReport
from vimoe_jax.parallel.parameters import fan_in, param

_EPS = 1e-6


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
        dtype: DTypeLike,
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
        shape = BlockShape(
            width=c.width,
            depth=c.depth,
            num_heads=c.num_heads,
            num_kv_heads=c.num_heads,
            head_dim=c.width // c.num_heads,
            mlp_dim=c.mlp_dim,
            activation="gelu_tanh",
            bias=True,
            norm_eps=_EPS,
            qk_norm=False,
            num_ids=patches,
            attention=attention,
            dtype=dtype,
        )
        self.blocks = Stack(
            moe_layers(c.moe, c.depth),
            lambda is_moe, rngs: Block(shape, c.moe if is_moe else None, rngs=rngs),
            **scan,
            rngs=rngs,
        )
        self.post_norm = LayerNorm(c.width, _EPS, rngs=rngs)

    @jax.named_scope("vision")
    def __call__(
        self, image: UInt8[Array, "B H W 3"], places: Places, key: jax.Array | None = None
    ) -> tuple[Float[Array, "B P D"], MoEReport | None]:
        """Encodes pictures.

        Args:
          image: pixels 0 to 255, mapped to [-1, 1] as SigLIP does.
          places: of the P patches: those of a picture that is padding take no place in an expert.
          key: given in training only (router noise).

        Returns:
          Patch features in `dtype`, and the MoE reports of all layers that have experts.
        """
        pixels = (image.astype(jnp.float32) / 127.5 - 1).astype(self.dtype)
        x = self._embed(pixels)

        def apply(block: Block, x, _, key):
            return block(x, places, key=key)

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
