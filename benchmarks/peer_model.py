"""transformers' models of the benchmarks' shapes, built, compiled and timed."""

from __future__ import annotations

import argparse
import math
import statistics
import timeit
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    import torch


GIB = 2**30


WARMUP = 6  # calls before any timing; the first one or two compile and create optimizer state


VISION = dict(
    hidden_size=768, num_hidden_layers=12, num_attention_heads=12, intermediate_size=3072,
    image_size=224, patch_size=16,
)  # fmt: skip


TEXT = dict(
    hidden_size=1024, num_hidden_layers=28, num_attention_heads=16, num_key_value_heads=8,
    head_dim=128, intermediate_size=3072, vocab_size=151936,
)  # fmt: skip


TINY_VISION = VISION | dict(hidden_size=48, num_hidden_layers=2, image_size=32)


TINY_TEXT = TEXT | dict(hidden_size=32, num_hidden_layers=4, head_dim=16, vocab_size=128)


def milliseconds(call: Callable[[], object], repeats: int, device: torch.device) -> list[float]:
    """Durations in ms of `repeats` calls; what a call returns is dropped after its end."""
    import torch

    if device.type == "cpu":
        return [1e3 * seconds for seconds in timeit.repeat(call, number=1, repeat=repeats)]
    events = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(repeats)]
    torch.cuda.synchronize()
    for start, end in events:  # back to back, so that launching overlaps the previous call
        start.record()
        result = call()
        end.record()
        del result  # the next call reuses this memory
    torch.cuda.synchronize()
    return [start.elapsed_time(end) for start, end in events]


def register_grouped_mm_bf16() -> None:
    """Adds `grouped_mm_bf16`: grouped_mm on bf16 copies of float32 expert weights.

    torch.autocast does not know grouped_mm and transformers casts the tokens to the weights'
    dtype, so under autocast the stock implementation multiplies in float32, one expert after
    another. This is what autocast does for every other matrix: the peer at its best.
    """
    import torch
    from transformers.integrations import moe

    # What transformers' function reads; which of it there is depends on the version.
    names = ("num_experts", "has_gate", "has_bias", "is_transposed", "has_post_expert_norm",
             "post_expert_norm", "_apply_gate", "_is_expert_parallel")  # fmt: skip

    class Cast:  # one that dynamo can trace, as it cannot SimpleNamespace
        def __init__(self, experts: torch.nn.Module):
            for name in names:
                if hasattr(experts, name):
                    setattr(self, name, getattr(experts, name))
            self.gate_up_proj = experts.gate_up_proj.to(torch.bfloat16)
            self.down_proj = experts.down_proj.to(torch.bfloat16)

    def forward(self: torch.nn.Module, *arguments: torch.Tensor) -> torch.Tensor:
        return moe.grouped_mm_experts_forward(cast(Any, Cast(self)), *arguments)

    moe.ALL_EXPERTS_FUNCTIONS.register("grouped_mm_bf16", forward)


def make_model(a: argparse.Namespace, device: torch.device) -> torch.nn.Module:
    """LLaVA with SigLIP B/16 and a text model of Qwen3-0.6B's shape, made on the device."""
    import torch
    from transformers import AutoModelForImageTextToText, LlavaConfig

    register_grouped_mm_bf16()
    vision, text = (TINY_VISION, TINY_TEXT) if a.tiny else (VISION, TEXT)
    # A cache of keys and values is of no use in training; transformers' Trainer turns it off too.
    text: dict[str, Any] = dict(text, model_type="qwen3", tie_word_embeddings=True, use_cache=False)
    if a.kind == "moe":
        # No router loss: `output_router_logits` is off by default, and LLaVA wraps the text model
        # without its head, where that loss is added.
        text |= dict(
            model_type="qwen3_moe", num_experts=8, num_experts_per_tok=2, norm_topk_prob=True,
            moe_intermediate_size=text["intermediate_size"], decoder_sparse_step=2,
        )  # fmt: skip
    config = LlavaConfig(
        # LLaVA reads the last layer's patches, so the tower's pooling head would be dead weight.
        vision_config=dict(vision, model_type="siglip_vision_model", vision_use_head=False),
        text_config=text,
        image_token_index=text["vocab_size"] - 1,
        image_seq_length=(vision["image_size"] // vision["patch_size"]) ** 2,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
    )
    kwargs = dict(dtype=getattr(torch, a.precision), attn_implementation="sdpa")
    if a.kind == "moe":
        # By sub-config: LLaVA itself has no experts and refuses a plain string.
        kwargs["experts_implementation"] = {"text_config": a.impl}
    with torch.device(device):
        return AutoModelForImageTextToText.from_config(config, **kwargs).train()


def blocks(model: Any) -> list[torch.nn.Module]:
    """All transformer blocks of the decoder and the tower. Raises ValueError if some are missing.

    They are what transformers calls a layer that can be recomputed.
    """
    from transformers.modeling_layers import GradientCheckpointingLayer

    found: list[torch.nn.Module]
    found = [m for m in model.modules() if isinstance(m, GradientCheckpointingLayer)]
    config = model.config
    expected = config.vision_config.num_hidden_layers + config.text_config.num_hidden_layers
    if len(found) != expected:
        raise ValueError(f"{len(found)} transformer blocks found, not {expected}")
    return found


def compile_blocks(a: argparse.Namespace, model: Any) -> None:
    """Compiles every block and the loss, in place, as torchtitan does it: much sooner ready.

    A graph of the whole model takes minutes, and FSDP must gather between the blocks.
    """
    import torch

    # `eager` experts loop over those that got tokens, which no single graph can hold. For all
    # else a graph break, or a block more than dynamo recompiles for, must be an error.
    options: dict[str, Any] = dict(dynamic=False, fullgraph=a.impl != "eager")
    # LLaVA asks the tower for its hidden states, and transformers then hooks whatever it can
    # collect. A hook on attention, inside a block, would break the graph; nobody reads it.
    model.model.vision_tower._can_record_outputs.pop("attentions", None)
    for block in blocks(model):
        # Not the module: the block's own hooks (FSDP's, hidden states) stay outside the graph.
        block.forward = torch.compile(block.forward, **options)
    model.loss_function = torch.compile(model.loss_function, **options)


def make_inputs(a: argparse.Namespace, model: Any, device: torch.device) -> dict[str, torch.Tensor]:
    """Random rows: a picture's placeholders, then text; the loss is on the text alone."""
    import torch

    config = model.config
    patches, size = config.image_seq_length, config.vision_config.image_size
    with torch.device(device):
        pixels = torch.randn(a.batch, 3, size, size, dtype=model.dtype)
        text = torch.randint(0, config.image_token_id, (a.batch, a.text))  # the last id is spared
        image = torch.full((a.batch, patches), config.image_token_id)
    # No attention mask: every position is valid, and sdpa may then take its causal flash kernel
    # (under torch.compile transformers builds a causal mask all the same, which rules flash out).
    return {
        "input_ids": torch.cat([image, text], dim=1),
        "pixel_values": pixels,
        "labels": torch.cat([torch.full_like(image, -100), text], dim=1),
    }


def measure_steps(
    a: argparse.Namespace,
    model: torch.nn.Module,
    forward: Callable,
    inputs: dict[str, torch.Tensor],
    device: torch.device,
    autocast: bool,
) -> dict[str, float]:
    """Whole training steps in this process: the median ms and, on a GPU, the peak GiB.

    `forward` is `model` or its compiled form. Raises ValueError if the loss is not finite at last.
    """
    import torch

    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, betas=(0.9, 0.98), fused=True)

    def step() -> torch.Tensor:
        with torch.autocast(device.type, torch.bfloat16, enabled=autocast):
            loss = forward(**inputs).loss  # logits of every position, in float32: as it comes
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    milliseconds(step, WARMUP, device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    if torch.distributed.is_initialized():
        torch.distributed.barrier()  # or the first step would count the wait for a late rank
    record = {"ms": statistics.median(milliseconds(step, a.repeats, device))}
    if device.type == "cuda":
        record["peak_gib"] = torch.cuda.max_memory_allocated() / GIB
    if not math.isfinite(loss := step().item()):
        raise ValueError(f"the loss is {loss} after {WARMUP + a.repeats + 1} steps")
    return record


def model_record(a: argparse.Namespace, model: Any, measured: dict[str, float]) -> dict[str, Any]:
    """The record of a model: ms, tokens (of image and text, of all GPUs) per second, peak GiB."""
    tokens = a.gpus * a.batch * (model.config.image_seq_length + a.text)
    record = {"ms": measured["ms"], "tokens_per_s": tokens / measured["ms"] * 1e3, **measured}
    record["params"] = sum(p.numel() for p in model.parameters())  # tied weights count once
    return record
