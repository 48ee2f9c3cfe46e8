"""Tower + connector + decoder: a picture and tokens to hidden states and logits (LLaVA's form)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx, struct
from jaxtyping import Array, Bool, Float, Int, UInt8

from vimoe_jax import config as config_lib
from vimoe_jax.model import tokens as tokens_lib
from vimoe_jax.model.decoder import Decoder
from vimoe_jax.model.layers import MLP
from vimoe_jax.model.vision import VisionTower
from vimoe_jax.moe.block import MoE, weighted_losses
from vimoe_jax.moe.stats import MoEStats


@struct.dataclass
class Output:
    """What a forward pass gives.

    Attributes:
      hidden: of the S text places, after the final norm.
      moe: reports of the MoE layers by part ("vision", "connector", "decoder"), nested like
        `Stack`'s; parts without experts have none.
      aux_loss: weighted auxiliary losses, summed over layers.
    """

    hidden: Float[Array, "B S D"]
    moe: dict[str, Any]
    aux_loss: Float[Array, ""]


class VLM(nnx.Module):
    """The whole model.

    A row is the picture's P features followed by S text tokens in one or more segments, each of
    which sees the picture and itself only; a segment's first token has position P.
    """

    def __init__(self, c: config_lib.Model, vocab_size: int, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.config = c
        self.num_patches = (c.image_size // c.patch_size) ** 2
        both = dict(
            dtype=dtype, attention=c.attention, scan=dict(remat=c.remat, unroll=c.unroll), rngs=rngs
        )
        self.vision = VisionTower(c.vision, c.image_size, c.patch_size, **both)
        width = c.decoder.width
        mlp = dict(activation="gelu", bias=True, dtype=dtype, rngs=rngs)
        if c.connector.moe.num_experts:
            ids = self.num_patches
            self.connector = MoE(c.connector.moe, c.vision.width, width, width, **mlp, num_ids=ids)
        else:
            self.connector = MLP(c.vision.width, width, width, **mlp)
        self.vocab_size = vocab_size
        self.decoder = Decoder(c.decoder, vocab_size, self.num_patches, **both)

    def encode(
        self, image: UInt8[Array, "B H W 3"], valid: Bool[Array, "B"], key: jax.Array | None = None
    ) -> tuple[Float[Array, "B P D"], dict[str, Any]]:
        """Pictures to the decoder's input embeddings, and the MoE reports on the way."""
        keys = (None, None) if key is None else jax.random.split(key)
        x, reports = self.vision(image, valid, keys[0])
        moe = {"vision": reports}
        if isinstance(self.connector, MoE):
            valid = jnp.broadcast_to(valid[:, None], x.shape[:2])
            kind = jnp.full(x.shape[:2], tokens_lib.TokenKind.IMAGE, jnp.int32)
            kinds = tokens_lib.NUM_KINDS
            ids = jnp.broadcast_to(jnp.arange(self.num_patches), kind.shape)
            x, report = self.connector(x, valid, kind, num_kinds=kinds, key=keys[1], ids=ids)
            moe["connector"] = [[jax.tree.map(lambda a: a[None], report)]]
        else:
            x = self.connector(x)
        return x, moe

    def __call__(self, batch: Mapping[str, jax.Array], *, key: jax.Array | None = None) -> Output:
        """Teacher-forced pass over a batch of rows.

        Args:
          batch: `image` (B, H, W, 3) uint8; `tokens`, `segments`, `positions` (B, S) int32;
            `weights` (B, S), positive where the next token is an answer's.
          key: given in training only.
        """
        keys = (None, None) if key is None else jax.random.split(key)
        patches = self.num_patches
        segments, valid = tokens_lib.row_segments(batch["segments"], patches)
        picture, moe = self.encode(batch["image"], valid[:, 0], keys[0])
        x = jnp.concatenate([picture, self.decoder.embed(batch["tokens"])], 1)
        first = jnp.broadcast_to(jnp.arange(patches), (x.shape[0], patches))
        positions = jnp.concatenate([first, batch["positions"] + patches], 1)
        x, _, reports = self.decoder(
            x,
            positions,
            tokens_lib.attention_mask(segments, valid),
            valid,
            tokens_lib.token_kinds(batch["weights"], patches),
            key=keys[1],
            ids=self.ids(batch["tokens"]),
        )
        moe = _present(moe | {"decoder": reports})
        return Output(x[:, patches:], moe, self._auxiliary_loss(moe))

    def ids(self, tokens: Int[Array, "B S"]) -> Int[Array, "B PS"]:
        """What hash routers look up: V and up for the picture's places, then the tokens."""
        shape = (tokens.shape[0], self.num_patches)
        places = jnp.broadcast_to(self.vocab_size + jnp.arange(self.num_patches), shape)
        return jnp.concatenate([places.astype(tokens.dtype), tokens], 1)

    def _auxiliary_loss(self, moe: dict[str, Any]) -> Float[Array, ""]:
        total = jnp.zeros((), jnp.float32)
        for part, reports in moe.items():
            options = getattr(self.config, part).moe
            for report in jax.tree.leaves(reports, is_leaf=lambda r: isinstance(r, MoEStats)):
                total += weighted_losses(options, report).sum()
        return total

    def logits(self, hidden: Float[Array, "... D"]) -> Float[Array, "... V"]:
        """Next-token logits, float32."""
        matrix = self.decoder.output_matrix().astype(hidden.dtype)
        return jnp.einsum("...d,vd->...v", hidden, matrix, preferred_element_type=jnp.float32)


def _present(moe: dict[str, Any]) -> dict[str, Any]:
    """Drops the parts that have no MoE layer."""
    return {part: reports for part, reports in moe.items() if jax.tree.leaves(reports)}


def compute_dtype(name: str) -> jnp.dtype:
    """The dtype a config's `model.dtype` names; "auto" depends on the platform."""
    if name == "auto":
        name = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    return jnp.dtype(name)
