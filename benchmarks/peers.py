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
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.peer_model import (
    GIB,
    WARMUP,
    compile_blocks,
    make_inputs,
    make_model,
    measure_steps,
    milliseconds,
    model_record,
)

# torch is imported where it is used: the JAX process that calls `run` must not load its CUDA.
if TYPE_CHECKING:
    import torch

ROOT = Path(__file__).resolve().parents[1]

# Layer variant -> (transformers' experts implementation, torch.compile's mode or None).
VARIANTS = {
    "grouped_mm": ("grouped_mm", "default"),
    "grouped_mm_autotune": ("grouped_mm", "max-autotune-no-cudagraphs"),
    "grouped_mm_eager": ("grouped_mm", None),
    # Gathers a copy of the expert's weights for every (token, choice): for small T only.
    "batched_mm": ("batched_mm", "default"),
    "eager": ("eager", None),
}


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
    from transformers import Qwen3MoeConfig
    from transformers.models.qwen3_moe import modeling_qwen3_moe as qwen3_moe

    implementation, mode = VARIANTS[variant]
    sizes: dict[str, Any] = dict(
        hidden_size=a.width, moe_intermediate_size=a.hidden, num_experts=a.experts,
        num_experts_per_tok=a.k, norm_topk_prob=True, experts_implementation=implementation,
    )  # fmt: skip
    config = Qwen3MoeConfig(**sizes)
    block = qwen3_moe.Qwen3MoeSparseMoeBlock(config).to(torch.bfloat16)
    with torch.no_grad():
        # Outside a PreTrainedModel the experts are uninitialised and the router is zero, which
        # would send every token to the same experts.
        params: list[torch.Tensor] = list(block.parameters())
        for parameter in params:
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
        for file in (out, err):
            file.seek(0)
        printed, said = (file.read().decode(errors="replace") for file in (out, err))
    # A line cut short by a kill has no closing brace.
    lines = [line for line in printed.splitlines() if line[:1] == "{" and line[-1:] == "}"]
    records = [json.loads(line) for line in lines]
    if failure:
        error = ": ".join([failure, *said.strip().splitlines()[-1:]])
        records.append({"name": " ".join(["peers", *arguments]), "error": error})
    return records


def main() -> None:
    """Parses the command line and measures."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
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
