"""A LLaVA whose tower or connector has experts in place of MLPs, in plain PyTorch.

Every token is sent to the K experts that its router likes best, and their outputs are summed by
the router's probabilities. Nothing is dropped: experts take as many tokens as come.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import nn
from transformers import LlavaForConditionalGeneration
from transformers.activations import ACT2FN
from transformers.conversion_mapping import (
    get_checkpoint_conversion_mapping,
    register_checkpoint_conversion_mapping,
)
from transformers.models.llava.modeling_llava import LlavaModel, LlavaPreTrainedModel

from .configuration_vimoe import ViMoEConfig

# The files' names are a LLaVA's.
_NAMES = get_checkpoint_conversion_mapping("llava")
if _NAMES is None:
    raise ImportError("this version of transformers has no names of LLaVA's tensors")
register_checkpoint_conversion_mapping(ViMoEConfig.model_type, _NAMES, overwrite=True)


class Experts(nn.Module):
    """A router and E two-layer MLPs with biases.

    Args:
      settings: of this part, from `ViMoEConfig.experts`.
      in_size: width of a token.
      out_size: width of what it becomes.
      activation: between the two layers.
      names: what the two layers are called in the file.
    """

    def __init__(
        self,
        settings: dict,
        in_size: int,
        out_size: int,
        activation: str,
        names: tuple[str, str],
    ):
        super().__init__()
        self.k = settings["num_experts_per_tok"]
        self.renormalize = settings["norm_topk_prob"]
        self.out_size, self.names = out_size, names
        self.act = ACT2FN[activation]
        width = settings["intermediate_size"]
        self.gate = nn.Linear(in_size, settings["num_experts"], bias=False)
        first, second = names
        self.experts = nn.ModuleList(
            nn.ModuleDict({first: nn.Linear(in_size, width), second: nn.Linear(width, out_size)})
            for _ in range(settings["num_experts"])
        )

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """(*B, in_size) to (*B, out_size)."""
        x = hidden_states.reshape(-1, hidden_states.shape[-1])
        # The router works in float32 whatever the model's dtype is, as in training.
        gates = nn.functional.linear(x.float(), self.gate.weight.float()).softmax(-1)
        weight, chosen = gates.topk(self.k, dim=-1)
        if self.renormalize:
            weight = weight / weight.sum(-1, keepdim=True)
        total = x.new_zeros(len(x), self.out_size, dtype=torch.float32)
        first, second = self.names
        for number, expert in enumerate(self.experts):
            token, choice = torch.where(chosen == number)
            layers = cast(nn.ModuleDict, expert)
            y = layers[second](self.act(layers[first](x[token])))
            total = total.index_add(0, token, weight[token, choice, None] * y)
        return total.to(x.dtype).reshape(*hidden_states.shape[:-1], -1)


class ViMoEModel(LlavaModel):
    """A `LlavaModel` with experts where the configuration has them."""

    config_class = ViMoEConfig

    def __init__(self, config: ViMoEConfig):
        super().__init__(config)
        # LLaVA's configuration makes configurations of the dicts that it is given.
        vision, text = cast(Any, config.vision_config), cast(Any, config.text_config)
        experts = config.experts or {}
        if "vision" in experts:
            width = vision.hidden_size
            for layer in experts["vision"]["layers"]:
                self.vision_tower.encoder.layers[layer].mlp = Experts(
                    experts["vision"], width, width, vision.hidden_act, ("fc1", "fc2")
                )
        if "connector" in experts:
            self.multi_modal_projector = Experts(
                experts["connector"],
                vision.hidden_size,
                text.hidden_size,
                config.projector_hidden_act,
                ("linear_1", "linear_2"),
            )
        self.post_init()


class ViMoEForConditionalGeneration(LlavaForConditionalGeneration):
    """Picture and text to text."""

    config_class = ViMoEConfig

    def __init__(self, config: ViMoEConfig):
        LlavaPreTrainedModel.__init__(self, config)  # LLaVA's own would build a dense model first
        self.model = ViMoEModel(config)
        text = cast(Any, config.text_config)
        self.lm_head = nn.Linear(text.hidden_size, text.vocab_size, bias=False)
        self.post_init()
