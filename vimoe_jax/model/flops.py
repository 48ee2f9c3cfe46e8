"""The FLOPs that a model's training step needs, by formula: what MFU is measured in."""

from __future__ import annotations

import math

from vimoe_jax.config import Config
from vimoe_jax.config.parts import part_name
from vimoe_jax.model.blueprint import Blueprint
from vimoe_jax.parallel.parameters import decays, is_bias


def model_flops(c: Config, blueprint: Blueprint) -> float:
    """FLOPs of one optimizer step, for B rows of I pictures of P patches and T text tokens:

      6·B·(I·P·(tower + connector) + (I·P + T)·decoder + T·V·D)    6 = 2 forward + 4 backward
      + 12·B·(I·P²·L_tower·D_tower + (I·P + T)²·L·H·N / 2)         scores and sums, half if causal

    where tower, connector and decoder count the entries of the matrices that one token is
    multiplied by: K of E experts, all of the router; no norms, biases, positions or look-ups.
    Choices that an expert has no room for still count; what is computed again does not.
    """
    vision, decoder = c.model.vision, c.model.decoder
    patches = c.model.num_patches
    text, most = c.data.text_length, c.data.max_pictures
    seen = most * patches
    tokens = {"vision": seen, "connector": seen, "decoder": seen + text}
    axes, met = blueprint.axes(), 0.0  # entries met, over all tokens of a row
    for name, shape in blueprint.shapes().items():
        part, size = part_name(name), math.prod(shape)
        if name in ("decoder.embedding", "decoder.head", "vision.positions"):
            continue
        if is_bias(name) or not decays(axes[name]):
            continue
        if ".experts." in name:
            options = blueprint.parts[part].moe
            if options.traits.mixes:  # slots are what goes through experts, not tokens
                met += size / options.experts * options.soft_slots * options.experts
                continue
            size = size * options.experts_per_token / options.num_experts
        met += size * tokens[part]
    met += text * blueprint.vocab_size * decoder.width
    scores = most * patches**2 * vision.depth * vision.width
    scores += (seen + text) ** 2 * decoder.depth * decoder.num_heads * decoder.head_dim / 2
    return c.train.batch_size * (6 * met + 12 * scores)
