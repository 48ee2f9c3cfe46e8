"""One transformer block, of the tower and of the decoder alike."""

from __future__ import annotations

import dataclasses

import jax
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from vimoe_jax.model.layers import MLP, Attention, KVCache, LayerNorm, RMSNorm
from vimoe_jax.model.tokens import NUM_KINDS, Places
from vimoe_jax.moe.block import MoE
from vimoe_jax.moe.experts import MLPSettings
from vimoe_jax.moe.options import MoEOptions
from vimoe_jax.moe.report import MoEReport
from vimoe_jax.parallel.rules import constrain

Rotation = tuple[Float[Array, "B S half"], Float[Array, "B S half"]]


@dataclasses.dataclass(frozen=True)
class BlockShape:
    """What all blocks of a part have in common.

    Attributes:
      width: D.
      depth: layers of the part; the last projections start smaller the more there are.
      num_heads: H, of queries.
      num_kv_heads: of keys and values.
      head_dim: N.
      mlp_dim: F of a dense MLP.
      activation: of the MLPs (`moe.experts.ACTIVATIONS`).
      bias: whether products have biases and norms are LayerNorms (a ViT); else RMSNorms.
      norm_eps: added to the variance.
      qk_norm: whether queries and keys are normed.
      num_ids: ids that a hash router may be asked for.
      attention: who computes attention.
      dtype: of the products.
    """

    width: int
    depth: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    mlp_dim: int
    activation: str
    bias: bool
    norm_eps: float
    qk_norm: bool
    num_ids: int
    attention: str
    dtype: DTypeLike


class Block(nnx.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)), the MLP dense or a mixture of experts.

    Args:
      shape: of the part's blocks.
      moe: the experts' settings; None for a dense MLP.
    """

    def __init__(self, shape: BlockShape, moe: MoEOptions | None, *, rngs: nnx.Rngs):
        s, scale = shape, (2 * shape.depth) ** -0.5
        norm = LayerNorm if s.bias else RMSNorm
        self.norm1 = norm(s.width, s.norm_eps, rngs=rngs)
        self.attention = Attention(
            s.width,
            s.num_heads,
            s.num_kv_heads,
            s.head_dim,
            bias=s.bias,
            qk_norm_eps=s.norm_eps if s.qk_norm else None,
            dtype=s.dtype,
            rngs=rngs,
            out_scale=scale,
            implementation=s.attention,
        )
        self.norm2 = norm(s.width, s.norm_eps, rngs=rngs)
        mlp = MLPSettings(
            activation=s.activation, bias=s.bias, dtype=s.dtype, rngs=rngs, out_scale=scale
        )
        if moe is None:
            self.mlp = MLP(s.width, s.mlp_dim, s.width, **mlp)
        else:
            self.mlp = MoE(moe, s.width, s.mlp_dim, s.width, **mlp, num_ids=s.num_ids)

    def __call__(
        self,
        x: Float[Array, "B S D"],
        places: Places,
        mask: Bool[Array, "B S Z"] | None = None,
        rotation: Rotation | None = None,
        cache: KVCache | None = None,
        offset: Int[Array, ""] | int = 0,
        key: jax.Array | None = None,
    ) -> tuple[Float[Array, "B S D"], KVCache | None, MoEReport | None]:
        """Runs the block.

        Args:
          x: the S new places.
          places: what is known of each of them.
          mask: which of the Z keys each place sees (Z = S without a cache); None: all see all.
          rotation: cosine and sine of the rotary angles; None: positions are in x.
          cache: keys and values so far; new ones are written at `offset`.
          offset: of the first new place in the cache.
          key: given in training only.

        Returns:
          The output, the new cache (None if none was given), the MoE report (None if dense).
        """
        h, cache = self.attention(self.norm1(x), mask, rotation, cache, offset)
        x = x + h
        h, report = mix(self.mlp, self.norm2(x), places, key)
        return constrain(x + h, ("batch", None, None)), cache, report


def mix(
    mlp: MLP | MoE, x: Float[Array, "B S D"], places: Places, key: jax.Array | None
) -> tuple[Float[Array, "B S O"], MoEReport | None]:
    """An MLP, dense or a mixture of experts, on every place; with the report of the latter."""
    if isinstance(mlp, MLP):
        return mlp(x), None
    return mlp(x, places.valid, places.kind, num_kinds=NUM_KINDS, key=key, ids=places.ids)
