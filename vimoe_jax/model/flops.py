"""The FLOPs that a model's training step needs, by formula: what MFU is measured in."""

from __future__ import annotations

import math

from vimoe_jax.config import Config
from vimoe_jax.model.blueprint import Blueprint
from vimoe_jax.parallel.parameters import decays, is_bias


def model_flops(c: Config, blueprint: Blueprint) -> float:
    """FLOPs of one optimizer step, for B rows of P patches and S text tokens:

      6·B·(P·(tower + connector) + (P + S)·decoder + S·V·D)     6 = 2 forward + 4 backward
      + 12·B·(P²·L_tower·D_tower + (P + S)²·L·H·N / 2)          scores and sums, half if causal

    where tower, connector and decoder count the entries of the matrices that one token is
    multiplied by: K of E experts, all of the router; no norms, biases, positions or look-ups.
    Choices that an expert has no room for still count; what is computed again does not.
    """
    vision, decoder = c.model.vision, c.model.decoder
    patches = (c.model.image_size // c.model.patch_size) ** 2
    text = c.data.text_length
    tokens = {"vision": patches, "connector": patches, "decoder": patches + text}
    axes, met = blueprint.axes(), 0.0  # entries met, over all tokens of a row
    for name, shape in blueprint.shapes().items():
        part, size = name.split(".")[0], math.prod(shape)
        if name in ("decoder.embedding", "decoder.head", "vision.positions"):
            continue
        if is_bias(name) or not decays(axes[name]):
            continue
        if ".experts." in name:
            options = getattr(c.model, part).moe
            if options.traits.mixes:  # slots are what goes through experts, not tokens
                met += size / options.experts * options.soft_slots * options.experts
                continue
            size = size * options.experts_per_token / options.num_experts
        met += size * tokens[part]
    met += text * blueprint.vocab_size * decoder.width
    scores = patches**2 * vision.depth * vision.width
    scores += (patches + text) ** 2 * decoder.depth * decoder.num_heads * decoder.head_dim / 2
    return c.train.batch_size * (6 * met + 12 * scores)
