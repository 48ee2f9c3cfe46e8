"""Configuration of a LLaVA whose tower or connector has experts."""

from __future__ import annotations

from transformers import LlavaConfig


class ViMoEConfig(LlavaConfig):
    """A `LlavaConfig`, and where experts stand in place of MLPs.

    `experts` has an entry for "vision" and one for "connector", where they have any: `num_experts`,
    `num_experts_per_tok`, `intermediate_size`, `norm_topk_prob`, and for the tower `layers`, the
    numbers of the layers with experts. Experts of the decoder are `text_config`'s.
    """

    model_type = "vimoe"
    experts: dict | None = None
