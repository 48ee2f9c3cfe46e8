"""The causal decoder, in Qwen3's form: RMSNorm, grouped-query attention, QK-norm, RoPE, SwiGLU.

Without the norms of queries and keys it has Llama's form.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from vimoe_jax.config.model import Decoder as DecoderConfig
from vimoe_jax.model.layers import MLP, Attention, KVCache, RMSNorm, rotary
from vimoe_jax.model.stack import Stack, empty
from vimoe_jax.model.tokens import NUM_KINDS
from vimoe_jax.moe.block import MoE
from vimoe_jax.moe.options import moe_layers
from vimoe_jax.parallel.lookup import TABLE, lookup
from vimoe_jax.parallel.parameters import param
from vimoe_jax.parallel.rules import constrain


class DecoderBlock(nnx.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)), the MLP dense or MoE."""

    def __init__(
        self,
        c: DecoderConfig,
        is_moe: bool,
        num_ids: int,
        *,
        dtype: jnp.dtype,
        attention: str,
        rngs: nnx.Rngs,
    ):
        scale = (2 * c.depth) ** -0.5
        self.norm1 = RMSNorm(c.width, c.norm_eps, rngs=rngs)
        self.attention = Attention(
            c.width,
            c.num_heads,
            c.num_kv_heads,
            c.head_dim,
            bias=False,
            qk_norm_eps=c.norm_eps if c.qk_norm else None,
            dtype=dtype,
            rngs=rngs,
            out_scale=scale,
            implementation=attention,
        )
        self.norm2 = RMSNorm(c.width, c.norm_eps, rngs=rngs)
        mlp = dict(activation="swiglu", bias=False, dtype=dtype, rngs=rngs, out_scale=scale)
        if is_moe:
            self.mlp = MoE(c.moe, c.width, c.mlp_dim, c.width, **mlp, num_ids=num_ids)
        else:
            self.mlp = MLP(c.width, c.mlp_dim, c.width, **mlp)


class Decoder(nnx.Module):
    """Embeddings to hidden states; `logits` is the (tied or own) output head."""

    def __init__(
        self,
        c: DecoderConfig,
        vocab_size: int,
        num_patches: int,
        *,
        dtype: jnp.dtype,
        attention: str,
        scan: dict[str, Any],
        rngs: nnx.Rngs,
    ):
        self.config, self.dtype = c, dtype
        self.embedding = param(rngs, nnx.initializers.normal(0.02), (vocab_size, c.width), TABLE)
        self.blocks = Stack(
            moe_layers(c.moe, c.depth),
            lambda is_moe, rngs: DecoderBlock(
                c,
                is_moe,
                vocab_size + num_patches,
                dtype=dtype,
                attention=attention,
                rngs=rngs,
            ),
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
        valid: Bool[Array, "B S"],
        kind: Int[Array, "B S"],
        *,
        caches: Any = None,
        offset: Int[Array, ""] | int = 0,
        key: jax.Array | None = None,
        ids: Int[Array, "B S"] | None = None,
    ) -> tuple[Float[Array, "B S D"], Any, list[list[Any]]]:
        """Runs all blocks and the final norm.

        Args:
          x: embeddings of the S new places.
          positions: for the rotary angles.
          mask: which of the Z keys each place sees (Z = S without caches).
          valid: False for padding.
          kind: `TokenKind` of each place.
          caches: from `empty_cache` or an earlier call; new keys are written at `offset`.
          offset: place of the first new position in the caches.
          ids: of each place, for hash routers.
          key: given in training only.

        Returns:
          Normed hidden states, new caches (None if none were given), MoE reports.
        """
        rotation = rotary(positions, self.config.head_dim, self.config.rope_theta)

        def apply(block: DecoderBlock, x, cache, key):
            h, cache = block.attention(block.norm1(x), mask, rotation, cache, offset)
            x = x + h
            h, report = block.norm2(x), None
            if isinstance(block.mlp, MoE):
                h, report = block.mlp(h, valid, kind, num_kinds=NUM_KINDS, key=key, ids=ids)
            else:
                h = block.mlp(h)
            return constrain(x + h, ("batch", None, None)), cache, report

        x, caches, reports = self.blocks(apply, x, caches, key)
        return self.norm(x), caches, reports
