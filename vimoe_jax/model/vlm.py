"""Tower + connector + decoder: pictures and tokens to hidden states and logits (LLaVA's form)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int, UInt8

from vimoe_jax import config as config_lib
from vimoe_jax.base import struct
from vimoe_jax.config.parts import PartName
from vimoe_jax.data.batch import Batch
from vimoe_jax.model import tokens as tokens_lib
from vimoe_jax.model.block import mix
from vimoe_jax.model.decoder import Decoder
from vimoe_jax.model.layers import MLP
from vimoe_jax.model.loss import TokenLoss, cross_entropy
from vimoe_jax.model.tokens import Layout, Places, TokenKind
from vimoe_jax.model.vision import VisionTower
from vimoe_jax.moe.block import MoE, weighted_losses
from vimoe_jax.moe.experts import MLPSettings
from vimoe_jax.moe.report import MoEReport

# The MoE reports of each part that has any, a leading axis over its MoE layers.
Reports = dict[PartName, MoEReport]
_Found = dict[PartName, MoEReport | None]


@struct.dataclass
class Output:
    """What a forward pass gives.

    Attributes:
      hidden: of the T text tokens, after the final norm.
      moe: the MoE reports.
      aux_loss: weighted auxiliary losses, summed over layers.
    """

    hidden: Float[Array, "B T D"]
    moe: Reports
    aux_loss: Float[Array, ""]


class VLM(nnx.Module):
    """The whole model.

    A row is a stream of places, each a picture's patch or a text token (`data.batch.Batch`), in one
    or more segments; each segment sees itself and what all segments share.
    """

    def __init__(self, c: config_lib.Model, vocab_size: int, *, dtype: DTypeLike, rngs: nnx.Rngs):
        self.config = c
        self.num_patches = c.num_patches
        scan = dict(remat=c.remat, unroll=c.unroll)
        self.vision = VisionTower(
            c.vision,
            c.image_size,
            c.patch_size,
            dtype=dtype,
            attention=c.attention,
            scan=scan,
            rngs=rngs,
        )
        width = c.decoder.width
        mlp = MLPSettings(activation="gelu", bias=True, dtype=dtype, rngs=rngs)
        if c.connector.moe.num_experts:
            ids = self.num_patches
            self.connector = MoE(c.connector.moe, c.vision.width, width, width, **mlp, num_ids=ids)
        else:
            self.connector = MLP(c.vision.width, width, width, **mlp)
        self.vocab_size = vocab_size
        self.decoder = Decoder(
            c.decoder,
            vocab_size,
            self.num_patches,
            dtype=dtype,
            attention=c.attention,
            scan=scan,
            rngs=rngs,
        )

    def encode(
        self,
        pictures: UInt8[Array, "B I H W 3"],
        valid: Bool[Array, "B I"],
        key: jax.Array | None = None,
    ) -> tuple[Float[Array, "B IP D"] | None, Reports]:
        """Pictures to the decoder's input embeddings, and the MoE reports on the way.

        Args:
          pictures: I = 0 gives no embeddings, and the tower is not run.
          valid: False for pictures that a row does not have.
          key: given in training only.
        """
        rows, most = pictures.shape[:2]
        if not most:
            return None, {}
        keys = (None, None) if key is None else jax.random.split(key)
        shape = (rows * most, self.num_patches)
        places = Places(
            valid=jnp.broadcast_to(valid.reshape(-1, 1), shape),
            kind=jnp.full(shape, TokenKind.IMAGE, jnp.int32),
            ids=jnp.broadcast_to(jnp.arange(self.num_patches), shape),
        )
        x = pictures.reshape(rows * most, *pictures.shape[2:])
        x, in_vision = self.vision(x, places, keys[0])
        x, in_connector = mix(self.connector, x, places, keys[1])
        if in_connector is not None:
            in_connector = jax.tree.map(lambda a: a[None], in_connector)
        reports: _Found = {"vision": in_vision, "connector": in_connector}
        return x.reshape(rows, most * self.num_patches, -1), _present(reports)

    def __call__(self, batch: Batch, *, key: jax.Array | None = None) -> Output:
        """Teacher-forced pass over a batch of rows.

        Args:
          batch: on the device, or of NumPy.
          key: given in training only.
        """
        batch = jax.tree.map(jnp.asarray, batch)
        keys = (None, None) if key is None else jax.random.split(key)
        layout = self.layout(batch.tokens, batch.pictures.shape[1])
        kind = tokens_lib.token_kinds(layout.is_picture, batch.weights)
        x, encoding = self.embed(batch.pictures, batch.tokens, layout, keys[0])
        x, _, in_decoder = self.decoder(
            x,
            batch.positions,
            tokens_lib.attention_mask(batch.segments),
            self.places(batch.tokens, layout, batch.segments != 0, kind),
            key=keys[1],
        )
        reports: Reports = encoding | _present({"decoder": in_decoder})
        return Output(layout.text(x), reports, self._auxiliary_loss(reports))

    def loss(self, batch: Batch, *, key: jax.Array | None = None) -> tuple[TokenLoss, Output]:
        """The cross-entropy of a batch's answers, summed, and the pass that gave it."""
        out = self(batch, key=key)
        return self.token_loss(out.hidden, batch), out

    def token_loss(self, hidden: Float[Array, "B T D"], batch: Batch) -> TokenLoss:
        """The cross-entropy of the answers, from the text tokens' final hidden states."""
        batch = jax.tree.map(jnp.asarray, batch)
        layout = self.layout(batch.tokens, batch.pictures.shape[1])
        targets, weights = layout.text(batch.targets), layout.text(batch.weights)
        return cross_entropy(hidden, self.decoder.output_matrix(), targets, weights)

    def layout(self, tokens: Int[Array, "B S"], most: int) -> Layout:
        """Where the stream holds its pictures, of which there are at most I."""
        return Layout.create(tokens, most * self.num_patches)

    def embed(
        self,
        pictures: UInt8[Array, "B I H W 3"],
        tokens: Int[Array, "B S"],
        layout: Layout,
        key: jax.Array | None = None,
    ) -> tuple[Float[Array, "B S D"], Reports]:
        """A stream's embeddings, and the MoE reports of its pictures' encoding."""
        features, reports = self.encode(pictures, layout.has_picture(self.num_patches), key)
        return layout.merge(features, self.decoder.embed(layout.text(tokens))), reports

    def places(
        self,
        tokens: Int[Array, "B S"],
        layout: Layout,
        valid: Bool[Array, "B S"],
        kind: Int[Array, "B S"],
    ) -> Places:
        """What the decoder's layers know of each place of a stream."""
        return Places(valid, kind, layout.ids(tokens, self.vocab_size, self.num_patches))

    def _auxiliary_loss(self, reports: Reports) -> Float[Array, ""]:
        total = jnp.zeros((), jnp.float32)
        for part, report in reports.items():
            total += weighted_losses(getattr(self.config, part).moe, report).sum()
        return total

    def logits(self, hidden: Float[Array, "... D"]) -> Float[Array, "... V"]:
        """Next-token logits, float32."""
        matrix = self.decoder.output_matrix().astype(hidden.dtype)
        return jnp.einsum("...d,vd->...v", hidden, matrix, preferred_element_type=jnp.float32)


def _present(reports: _Found) -> Reports:
    """Leaves out the parts that have no MoE layer."""
    return {part: report for part, report in reports.items() if report is not None}


def compute_dtype(name: str) -> jnp.dtype:
    """The dtype a config's `model.dtype` names; "auto" depends on the platform."""
    if name == "auto":
        name = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    return jnp.dtype(name)
