"""The causal decoder, in Qwen3's form: RMSNorm, grouped-query attention, QK-norm, RoPE, SwiGLU.

Without the norms of queries and keys it has Llama's form.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from vimoe_jax.config.model import Decoder as DecoderConfig
from vimoe_jax.model.block import Block, BlockShape
from vimoe_jax.model.layers import KVCache, RMSNorm, rotary
from vimoe_jax.model.stack import Stack, empty
from vimoe_jax.model.tokens import Places
from vimoe_jax.moe.options import moe_layers
from vimoe_jax.moe.report import MoEReport
from vimoe_jax.parallel.lookup import TABLE, lookup
from vimoe_jax.parallel.parameters import param


class Decoder(nnx.Module):
    """Embeddings to hidden states; `output_matrix` is the (tied or own) output head."""

    def __init__(
        self,
        c: DecoderConfig,
        vocab_size: int,
        num_patches: int,
        *,
        dtype: DTypeLike,
        attention: str,
        scan: dict[str, Any],
        rngs: nnx.Rngs,
    ):
        self.config, self.dtype = c, dtype
        self.embedding = param(rngs, nnx.initializers.normal(0.02), (vocab_size, c.width), TABLE)
        shape = BlockShape(
            width=c.width,
            depth=c.depth,
            num_heads=c.num_heads,
            num_kv_heads=c.num_kv_heads,
            head_dim=c.head_dim,
            mlp_dim=c.mlp_dim,
            activation="swiglu",
            bias=False,
            norm_eps=c.norm_eps,
            qk_norm=c.qk_norm,
            num_ids=vocab_size + num_patches,
            attention=attention,
            dtype=dtype,
        )
        self.blocks = Stack(
            moe_layers(c.moe, c.depth),
            lambda is_moe, rngs: Block(shape, c.moe if is_moe else None, rngs=rngs),
            **scan,
            rngs=rngs,
        )
        self.norm = RMSNorm(c.width, c.norm_eps, rngs=rngs)
        if not c.tie_embeddings:
            self.head = param(rngs, nnx.initializers.normal(0.02), (vocab_size, c.width), TABLE)

    def embed(self, tokens: Int[Array, "B S"]) -> Float[Array, "B S D"]:
        """Token embeddings in the compute dtype."""
        return lookup(self.embedding[...].astype(self.dtype), tokens)

    def output_matrix(self) -> Float[Array, "V D"]:
        """The matrix whose product with a hidden state gives logits; float32."""
        return (self.embedding if self.config.tie_embeddings else self.head)[...]

    def empty_cache(self, batch: int, length: int) -> list[list[KVCache]]:
        """Caches of all layers for `length` positions, as nested as the stack."""
        c = self.config
        shape = (batch, length, c.num_kv_heads, c.head_dim)

        def one() -> KVCache:
            return KVCache(jnp.zeros(shape, self.dtype), jnp.zeros(shape, self.dtype))

        return [[empty(one, repeats) for _ in unit] for unit, repeats in self.blocks.plan]

    @jax.named_scope("decoder")
    def __call__(
        self,
        x: Float[Array, "B S D"],
        positions: Int[Array, "B S"],
        mask: Bool[Array, "B S Z"],
        places: Places,
        *,
        caches: Any = None,
        offset: Int[Array, ""] | int = 0,
        key: jax.Array | None = None,
    ) -> tuple[Float[Array, "B S D"], Any, MoEReport | None]:
        """Runs all blocks and the final norm.

        Args:
          x: embeddings of the S new places.
          positions: for the rotary angles.
          mask: which of the Z keys each place sees (Z = S without caches).
          places: what is known of each place.
          caches: from `empty_cache` or an earlier call; new keys are written at `offset`.
          offset: place of the first new position in the caches.
          key: given in training only.

        Returns:
          Normed hidden states, new caches (None if none were given), and the MoE reports of all
          layers that have experts (None if none has).
        """
        rotation = rotary(positions, self.config.head_dim, self.config.rope_theta)

        def apply(block: Block, x, cache, key):
            return block(x, places, mask, rotation, cache, offset, key)

        x, caches, reports = self.blocks(apply, x, caches, key)
        return self.norm(x), caches, reports
