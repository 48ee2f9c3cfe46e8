"""The PyTorch peers: a feed-forward block on one device, a vision-language training step on some.

python -m benchmarks.peers layer --tokens 32768 --width 1024 --hidden 2048 --experts 32 --k 2
python -m benchmarks.peers model --kind moe --precision bfloat16 --compile
python -m benchmarks.peers model --kind dense --precision float32 --compile --gpus 2

Needs torch and transformers (weights are random, nothing is downloaded). Each variant prints one
JSON object on a line of stdout, or {"name", "error"} if it fails; all else goes to stderr.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import timeit
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

# torch is imported where it is used: the JAX process that calls `run` must not load its CUDA.
if TYPE_CHECKING:
    import torch

ROOT = Path(__file__).resolve().parents[1]
GIB = 2**30
WARMUP = 6  # calls before any timing; the first one or two compile and create optimizer state

# Layer variant -> (transformers' experts implementation, torch.compile's mode or None).
VARIANTS = {
    "grouped_mm": ("grouped_mm", "default"),
    "grouped_mm_autotune": ("grouped_mm", "max-autotune-no-cudagraphs"),
    "grouped_mm_eager": ("grouped_mm", None),
    # Gathers a copy of the expert's weights for every (token, choice): for small T only.
    "batched_mm": ("batched_mm", "default"),
    "eager": ("eager", None),
}

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


def emit(name: str, measure: Callable[[], dict[str, Any]]) -> None:
    """Prints the record of one variant, or its error, and frees what it left on the device."""
    import torch

    try:
        record = {"name": name, **measure()}
    except Exception as error:
        traceback.print_exc()
        text = (str(error).strip().splitlines() or [""])[0]
        record = {"name": name, "error": f"{type(error).__name__}: {text}"}
    print(json.dumps(record), flush=True)
    torch._dynamo.reset()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


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


def dense_block(width: int, hidden: int, activation: str) -> tuple[Callable, list[torch.Tensor]]:
    """An MLP [1, T, D] -> [1, T, D], gate and up in one matrix, and its bf16 parameters."""
    import torch
    import torch.nn.functional as F

    swiglu = activation == "swiglu"
    up = 0.02 * torch.randn(hidden * (2 if swiglu else 1), width)
    down = 0.02 * torch.randn(width, hidden)
    params = [w.to(torch.bfloat16).requires_grad_() for w in (up, down)]

    def forward(x: torch.Tensor) -> torch.Tensor:
        h = F.linear(x, params[0])
        if swiglu:
            gate, value = h.chunk(2, dim=-1)
            h = F.silu(gate) * value
        else:
            h = F.gelu(h)
        return F.linear(h, params[1])

    return torch.compile(forward, dynamic=False), params


def moe_block(a: argparse.Namespace, variant: str) -> tuple[Callable, list[torch.Tensor]]:
    """Qwen3's sparse block [1, T, D] -> [1, T, D], router included, and its bf16 parameters."""
    import torch
    from transformers.models.qwen3_moe import modeling_qwen3_moe as qwen3_moe

    implementation, mode = VARIANTS[variant]
    config = qwen3_moe.Qwen3MoeConfig(
        hidden_size=a.width, moe_intermediate_size=a.hidden, num_experts=a.experts,
        num_experts_per_tok=a.k, norm_topk_prob=True, experts_implementation=implementation,
    )  # fmt: skip
    block = qwen3_moe.Qwen3MoeSparseMoeBlock(config).to(torch.bfloat16)
    with torch.no_grad():
        # Outside a PreTrainedModel the experts are uninitialised and the router is zero, which
        # would send every token to the same experts.
        for parameter in (params := list(block.parameters())):
            parameter.normal_(std=0.02)
    return (torch.compile(block, mode=mode, dynamic=False) if mode else block), params


def measure_layer(a: argparse.Namespace, variant: str, device: torch.device) -> dict[str, Any]:
    """Forward and backward of one block: ms, active TFLOP/s, GiB allocated at the peak.

    `temp_gib` holds what one call adds to its inputs: saved activations, workspace, the output
    and the gradients of the input and of every parameter.
    """
    import torch

    torch.manual_seed(0)
    with torch.device(device):
        if variant == "dense":  # equal active FLOPs: each token sees k times the hidden width
            block, params = dense_block(a.width, a.k * a.hidden, a.activation)
        else:
            block, params = moe_block(a, variant)
        x = torch.randn(1, a.tokens, a.width, dtype=torch.bfloat16, requires_grad=True)
        cotangent = torch.randn(1, a.tokens, a.width, dtype=torch.bfloat16)

    def call() -> tuple[torch.Tensor, ...]:
        return torch.autograd.grad(block(x), [x, *params], cotangent)

    milliseconds(call, WARMUP, device)
    record = {}
    if device.type == "cuda":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        milliseconds(call, 1, device)
        record["temp_gib"] = (torch.cuda.max_memory_allocated() - before) / GIB
    times = milliseconds(call, a.repeats, device)
    ms = statistics.median(times)
    matrices = 3 if a.activation == "swiglu" else 2
    flops = 6 * a.tokens * a.k * a.width * a.hidden * matrices  # 2 forward, 4 backward
    return {"ms": ms, "ms_min": min(times), "tflops": flops / ms / 1e9, **record}


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
        return moe.grouped_mm_experts_forward(Cast(self), *arguments)

    moe.ALL_EXPERTS_FUNCTIONS.register("grouped_mm_bf16", forward)


def make_model(a: argparse.Namespace, device: torch.device) -> torch.nn.Module:
    """LLaVA with SigLIP B/16 and a text model of Qwen3-0.6B's shape, made on the device."""
    import torch
    from transformers import AutoModelForImageTextToText, LlavaConfig

    register_grouped_mm_bf16()
    vision, text = (TINY_VISION, TINY_TEXT) if a.tiny else (VISION, TEXT)
    # A cache of keys and values is of no use in training; transformers' Trainer turns it off too.
    text = dict(text, model_type="qwen3", tie_word_embeddings=True, use_cache=False)
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


def blocks(model: torch.nn.Module) -> list[torch.nn.Module]:
    """All transformer blocks of the decoder and the tower. Raises ValueError if some are missing.

    They are what transformers calls a layer that can be recomputed.
    """
    from transformers.modeling_layers import GradientCheckpointingLayer

    found = [m for m in model.modules() if isinstance(m, GradientCheckpointingLayer)]
    config = model.config
    expected = config.vision_config.num_hidden_layers + config.text_config.num_hidden_layers
    if len(found) != expected:
        raise ValueError(f"{len(found)} transformer blocks found, not {expected}")
    return found


def compile_blocks(a: argparse.Namespace, model: torch.nn.Module) -> None:
    """Compiles every block and the loss, in place, as torchtitan does it: much sooner ready.

    A graph of the whole model takes minutes, and FSDP must gather between the blocks.
    """
    import torch

    # `eager` experts loop over those that got tokens, which no single graph can hold. For all
    # else a graph break, or a block more than dynamo recompiles for, must be an error.
    options = dict(dynamic=False, fullgraph=a.impl != "eager")
    # LLaVA asks the tower for its hidden states, and transformers then hooks whatever it can
    # collect. A hook on attention, inside a block, would break the graph; nobody reads it.
    model.model.vision_tower._can_record_outputs.pop("attentions", None)
    for block in blocks(model):
        # Not the module: the block's own hooks (FSDP's, hidden states) stay outside the graph.
        block.forward = torch.compile(block.forward, **options)
    model.loss_function = torch.compile(model.loss_function, **options)


def make_inputs(
    a: argparse.Namespace, model: torch.nn.Module, device: torch.device
) -> dict[str, torch.Tensor]:
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


def model_record(
    a: argparse.Namespace, model: torch.nn.Module, measured: dict[str, float]
) -> dict[str, Any]:
    """The record of a model: ms, tokens (of image and text, of all GPUs) per second, peak GiB."""
    tokens = a.gpus * a.batch * (model.config.image_seq_length + a.text)
    record = {"ms": measured["ms"], "tokens_per_s": tokens / measured["ms"] * 1e3, **measured}
    record["params"] = sum(p.numel() for p in model.parameters())  # tied weights count once
    return record


def measure_model(a: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """A whole training step on one device: ms, tokens per second, peak GiB, parameters.

    Under float32 the weights, gradients and moments are float32 and autocast multiplies in bf16;
    under bfloat16 everything is bf16.
    """
    import torch

    torch.manual_seed(0)
    model = make_model(a, device)
    inputs = make_inputs(a, model, device)
    forward = model
    if a.compile and a.blocks:
        compile_blocks(a, model)
    elif a.compile:
        forward = torch.compile(model, dynamic=False)
    autocast = a.precision == "float32"
    return model_record(a, model, measure_steps(a, model, forward, inputs, device, autocast))


def run(
    arguments: list[str], timeout: float, env: dict[str, str] | None = None
) -> list[dict[str, Any]]:
    """The records of `python -m benchmarks.peers *arguments`, run for at most `timeout` seconds.

    A process of its own gives torch's memory back, and lets JAX's be: the caller must not hold
    the device (no JAX array before this, or XLA_PYTHON_CLIENT_PREALLOCATE=false). `env` is added to
    its environment.
    """
    command = [sys.executable, "-m", "benchmarks.peers", *arguments]
    # Files, not pipes: compile workers inherit a pipe and could keep it open after a kill.
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        child = subprocess.Popen(
            command, cwd=ROOT, stdout=out, stderr=err, start_new_session=True,
            env=os.environ | (env or {}),
        )  # fmt: skip
        failure = None
        try:
            if code := child.wait(timeout):
                failure = f"exit code {code}"
        except subprocess.TimeoutExpired:
            failure = f"timed out after {timeout:g} s"
        finally:
            if child.poll() is None:
                os.killpg(child.pid, signal.SIGKILL)
                child.wait()
        printed, said = [f.seek(0) or f.read().decode(errors="replace") for f in (out, err)]
    # A line cut short by a kill has no closing brace.
    lines = [line for line in printed.splitlines() if line[:1] == "{" and line[-1:] == "}"]
    records = [json.loads(line) for line in lines]
    if failure:
        error = ": ".join([failure, *said.strip().splitlines()[-1:]])
        records.append({"name": " ".join(["peers", *arguments]), "error": error})
    return records


def main() -> None:
    """Parses the command line and measures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    layer = commands.add_parser("layer", help="forward and backward of one feed-forward block")
    for name in ("tokens", "width", "hidden", "experts", "k"):
        layer.add_argument(f"--{name}", type=int, required=True)
    layer.add_argument("--activation", choices=["swiglu", "gelu"], default="swiglu")
    layer.add_argument("--variants", default="dense,grouped_mm,batched_mm,eager")
    layer.add_argument("--repeats", type=int, default=20)
    model = commands.add_parser("model", help="a training step of a LLaVA")
    model.add_argument("--kind", choices=["dense", "moe"], required=True)
    model.add_argument("--precision", choices=["float32", "bfloat16"], required=True)
    model.add_argument("--batch", type=int, default=32, help="rows a GPU")
    for name, default in (("text", 60), ("repeats", 10)):
        model.add_argument(f"--{name}", type=int, default=default)
    model.add_argument("--gpus", type=int, default=1, help="of this host; more than one: FSDP2")
    model.add_argument("--compile", action="store_true")
    model.add_argument("--blocks", action="store_true",
                       help="compile block by block, as for several GPUs")  # fmt: skip
    model.add_argument("--tiny", action="store_true", help="a shape for testing on a CPU")
    model.add_argument("--impl", choices=["grouped_mm", "grouped_mm_bf16", "eager"],
                       default="grouped_mm", help="of the experts")  # fmt: skip
    a = parser.parse_args()

    # Both before transformers is imported: LLaVA's count of placeholders waits for the device in
    # every step and breaks the compiled graph; users in production turn it off.
    os.environ |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_DISABLE_TORCH_CHECK": "1"}
    import torch

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.set_float32_matmul_precision("high")  # TF32 where a float32 product is left: fair play
    if a.command == "layer":
        for variant in a.variants.split(","):
            if a.activation == "gelu" and variant != "dense":
                print(f"{variant}: no such peer without a gate", file=sys.stderr)
                continue
            emit(variant, lambda v=variant: measure_layer(a, v, device))
    else:
        parts = ["llava", a.kind, a.precision]
        parts += [a.impl] if a.kind == "moe" else []
        parts += ["compile"] if a.compile else []
        parts += ["blocks"] if a.compile and (a.blocks or a.gpus > 1) else []
        if a.gpus > 1:
            from benchmarks import fsdp

            emit("_".join([*parts, "fsdp2"]), lambda: fsdp.measure(a, device.type))
        else:
            emit("_".join(parts), lambda: measure_model(a, device))


if __name__ == "__main__":
    main()
