"""A whole training step on one device, beside its peers: ms, tokens/s, memory, share of the peak.

python -m benchmarks.train_step --model dense moe --dispatcher gather dropless --peers --out=o.json
python -m benchmarks.train_step --tiny                      # a shape for testing on a CPU

SigLIP-B/16 at 224 pixels and a decoder of Qwen3-0.6B's shape; "moe" puts 8 experts, 2 a token, in
every second decoder layer. A batch is 32 rows of 196 patches and 60 text tokens, random, every text
token weighed. All parameters are trained by AdamW: float32 master weights, gradients and moments,
bfloat16 products. It is the project's own step: blueprint, loss, optimizer, one compiled function.

The share of the peak (MFU) is model FLOPs a second over what an 8192³ bfloat16 product reaches on
the same device in the same process. Model FLOPs are those of `vimoe_jax.model.flops`: what is
computed again (`--remat`) does not count. Choices that an expert had no room for still count, so
the share of them stands beside it.

Every variant runs in a process of its own, so that its peak of memory is its own.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

# JAX and what imports it is loaded in a variant's process only: this one must not hold the device.
if TYPE_CHECKING:
    from vimoe_jax.config import Config
    from vimoe_jax.data.batch import Batch
    from vimoe_jax.train.step import StepMetrics

ROOT = Path(__file__).resolve().parents[1]
GIB = 2**30
WARMUP = 3  # steps before any timing
ROUND = 4  # steps between two waits for the device

VISION = dict(width=768, depth=12, num_heads=12, mlp_dim=3072)
DECODER: dict[str, Any] = dict(
    width=1024, depth=28, num_heads=16, num_kv_heads=8, head_dim=128, mlp_dim=3072,
    vocab_size=151936, rope_theta=1e6,
)  # fmt: skip
TINY_VISION = dict(width=48, depth=2, num_heads=3, mlp_dim=96)
TINY_DECODER = DECODER | dict(
    width=32, depth=4, num_heads=4, num_kv_heads=2, head_dim=16, mlp_dim=64, vocab_size=128
)


@dataclasses.dataclass(frozen=True)
class Variant:
    """One line of the table.

    Attributes:
      batch: rows a device.
      mesh: (axis, size) pairs; one device if empty.
      parts: what `vimoe_jax.moe.exchange.parts` shall say; its own answer if -1.
      only_compile: for JAX's compilation cache.
      turn: where to say that it has compiled, and to wait until the devices are its own.
      overrides: (field of the configuration, value) pairs.
    """

    model: str = "dense"
    dispatcher: str = "gather"
    capacity: float = 1.25
    remat: str = "none"
    unroll: int = 1
    steps: int = 20
    batch: int = 32
    text: int = 60
    tiny: bool = False
    profile: bool = False
    mesh: tuple[tuple[str, int], ...] = ()
    parts: int = -1
    only_compile: bool = False
    turn: str = ""
    overrides: tuple[tuple[str, str], ...] = ()

    def name(self) -> str:
        """Short, and different for different variants."""
        parts = [self.model]
        if self.model == "moe":
            parts.append(self.dispatcher)
            parts += [f"c{self.capacity:g}"] if self.dispatcher != "dropless" else []
        parts += ["remat"] if self.remat != "none" else []
        parts += [f"unroll{self.unroll}"] if self.unroll != 1 else []
        parts += [f"{axis}{size}" for axis, size in self.mesh]
        parts += [f"parts{self.parts}"] * (self.parts >= 0)
        parts += [f"{field.rsplit('.', 1)[-1]}={value}" for field, value in self.overrides]
        return "_".join(parts)

    def devices(self) -> int:
        """How many it runs on."""
        return math.prod(size for _, size in self.mesh)


def configuration(v: Variant) -> Config:
    """The project's configuration of a variant."""
    from vimoe_jax import config
    from vimoe_jax.base import schema

    c = config.defaults()
    c.model.image_size, c.model.patch_size = (32, 8) if v.tiny else (224, 16)
    c.model.dtype = "float32" if v.tiny else "bfloat16"
    c.model.remat, c.model.unroll = v.remat, v.unroll
    c.model.vision.update(TINY_VISION if v.tiny else VISION)
    c.model.decoder.update(TINY_DECODER if v.tiny else DECODER)
    if v.model == "moe":
        c.model.decoder.moe.update(
            num_experts=8, experts_per_token=2, placement="every_2",
            dispatcher=v.dispatcher, capacity_factor=v.capacity,
        )  # fmt: skip
    c.train.batch_size = v.batch * v.devices()
    c.data.text_length = v.text
    for field, text in v.overrides:
        schema.apply_override(c, field, text)
    return config.resolve(c.to_dict())


def random_batch(c: Config, vocab: int) -> Batch:
    """What a step reads: every text token has a weight, one segment a row."""
    import numpy as np

    from vimoe_jax.data.batch import Batch

    rng = np.random.default_rng(0)
    b, s, size = c.train.batch_size, c.data.text_length, c.model.image_size
    return Batch.picture_first(
        rng.integers(0, 256, (b, size, size, 3), dtype=np.uint8),
        c.model.num_patches,
        tokens=rng.integers(0, vocab, (b, s), dtype=np.int32),
        targets=rng.integers(0, vocab, (b, s), dtype=np.int32),
        weights=np.ones((b, s), np.float32),
        segments=np.ones((b, s), np.int32),
        positions=np.broadcast_to(np.arange(s, dtype=np.int32), (b, s)),
    )


def seconds_each(call: Callable[[], Any], rounds: int, calls: int) -> list[float]:
    """Seconds a call, of `rounds` rounds of `calls` calls that the host does not wait between."""
    import jax

    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        for _ in range(calls):
            result = call()
        jax.block_until_ready(result)
        times.append((time.perf_counter() - start) / calls)
    return times


def matmul_peak(device: Any, size: int = 8192) -> float:
    """FLOP/s of the fastest of some rounds of bfloat16 products of size³."""
    import jax
    import jax.numpy as jnp

    # Random: a GPU multiplies zeros faster than numbers, as they cost less power.
    keys = jax.random.split(jax.random.key(0))
    with jax.default_device(device):
        x, y = (jax.random.normal(k, (size, size), jnp.bfloat16) for k in keys)
    product = jax.jit(jnp.matmul)
    seconds_each(lambda: product(x, y), 1, 5)
    return 2 * size**3 / min(seconds_each(lambda: product(x, y), 5, 20))


def measure(v: Variant) -> dict[str, Any]:
    """Compiles the step of a variant, runs and times it on the first devices."""
    import jax

    from vimoe_jax.model.blueprint import Blueprint
    from vimoe_jax.model.flops import model_flops
    from vimoe_jax.moe import exchange
    from vimoe_jax.parallel.mesh import make_mesh, to_mesh
    from vimoe_jax.plan.collectives import collectives
    from vimoe_jax.train.program import Program

    if v.parts >= 0:
        exchange.parts = lambda mesh: v.parts
    c, devices = configuration(v), jax.devices()[: v.devices()]
    mesh = make_mesh(dict(v.mesh), devices)
    blueprint = Blueprint.create(c.model, c.model.decoder.vocab_size)
    program = Program.create(c, blueprint, mesh)
    # A generator that compiles fast: which random weights these are does not matter.
    key = jax.random.key(c.seed, impl="unsafe_rbg")
    init = jax.jit(program.init).lower(key).compile()
    batch = to_mesh(random_batch(c, blueprint.vocab_size), mesh)
    start = time.perf_counter()
    step = program.step().lower(program.abstract(), batch).compile()
    compile_s = time.perf_counter() - start

    if v.only_compile:
        return {"name": v.name(), "compile_s": compile_s}
    take_turn(v.turn)  # nothing large is on the devices before
    turn = time.perf_counter()
    state, metrics = init(key), None

    def call() -> StepMetrics:
        nonlocal state, metrics
        state, metrics = step(state, batch)
        return metrics

    profile: dict[str, Any] = {}
    first = jax.device_get(call())
    seconds_each(call, 1, WARMUP - 1)
    seconds = statistics.median(seconds_each(call, max(1, math.ceil(v.steps / ROUND)), ROUND))
    timed_s = time.perf_counter() - turn
    last = jax.device_get(metrics)
    stats, memory = devices[0].memory_stats() or {}, step.memory_analysis()
    if v.profile:
        profile = profiled(v.name(), call, step.as_text())
    state = metrics = None  # the product below needs no neighbours
    peak = matmul_peak(devices[0], 256 if v.tiny else 8192)
    del batch
    flops = model_flops(c, blueprint) / len(devices)
    sent: dict[str, int] = {}
    for one in collectives(step.as_text(), mesh) if v.mesh else ():
        sent[one.kind] = sent.get(one.kind, 0) + one.sent
    rows, patches = c.train.batch_size, c.model.num_patches
    record = {
        "name": v.name(),
        "device": devices[0].device_kind,
        "devices": len(devices),
        "ms": 1e3 * seconds,
        "tokens_per_s": rows * (patches + c.data.text_length) / seconds,
        "peak_gib": stats["peak_bytes_in_use"] / GIB if "peak_bytes_in_use" in stats else None,
        "temp_gib": memory.temp_size_in_bytes / GIB,
        "argument_gib": memory.argument_size_in_bytes / GIB,
        "mfu": flops / seconds / peak,
        "model_tflop": flops / 1e12,
        "peak_tflop_per_s": peak / 1e12,
        "compile_s": compile_s,
        "timed_s": timed_s,  # with the first step, in which NCCL connects the devices
        "profiled_s": time.perf_counter() - turn - timed_s,
        "params": blueprint.num_parameters(),
        "active_params": blueprint.num_active_parameters(),
        "sent_gib": {kind: size / GIB for kind, size in sent.items()},
        **profile,
        "loss": [float(m.tokens.loss / m.tokens.weight) for m in (first, last)],
    }
    if v.model == "moe":
        record["drop"] = drop_fraction(last)
        record["drop_first_step"] = drop_fraction(first)
    return record


def take_turn(mark: str) -> None:
    """Says by a file `mark`.here that it is ready, and waits for a file `mark`.go."""
    if mark:
        Path(f"{mark}.here").touch()
        while not Path(f"{mark}.go").exists():
            time.sleep(0.02)


def profiled(name: str, call: Callable[[], Any], hlo: str) -> dict[str, Any]:
    """Where a step's time goes, printed as well."""
    from benchmarks import profiling

    events = profiling.events(call)
    kernels = profiling.scopes_of(profiling.kernels(events), hlo)
    scopes = profiling.by_scope(kernels)
    share, overlap = profiling.communication(events)
    computing = profiling.computation(events)
    print(f"{name}: {sum(ms for *_, ms in kernels):.2f} ms on all devices", file=sys.stderr)
    print(f"  {share:.1%} of a step in collectives, {overlap:.1%} overlapped", file=sys.stderr)
    for scope, ms in scopes[:30]:
        print(f"  {ms:8.3f} ms  {scope}", file=sys.stderr)
    for _, kernel, op, ms in kernels[:30]:
        print(f"  {ms:8.3f} ms  {op[:40]:40}  {kernel[:70]}", file=sys.stderr)
    return {
        "scopes": scopes, "kernels": kernels[:200], "computing": computing,
        "collectives": share, "overlapped": overlap,
    }  # fmt: skip


def drop_fraction(metrics: StepMetrics) -> float:
    """Share of choices that found no slot, the mean over MoE layers."""
    import jax
    import numpy as np

    from vimoe_jax.moe.report import MoEReport

    layers = jax.tree.leaves(metrics.moe, is_leaf=lambda r: isinstance(r, MoEReport))
    return float(np.mean(np.concatenate([np.ravel(r.drop_fraction()) for r in layers])))


def measure_apart(v: Variant, timeout: float) -> dict[str, Any]:
    """`measure` in a process of its own."""
    command = [
        sys.executable, "-m", "benchmarks.train_step", "--one", json.dumps(dataclasses.asdict(v))
    ]  # fmt: skip
    try:
        done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, timeout=timeout)
    except subprocess.TimeoutExpired:
        return {"name": v.name(), "error": f"timed out after {timeout:g} s"}
    if done.returncode:
        return {"name": v.name(), "error": f"exit code {done.returncode}: see above"}
    return json.loads(done.stdout.splitlines()[-1])


def peer_runs(models: Sequence[str]) -> list[tuple[str, list[str]]]:
    """(model, arguments) of each peer: float32 master weights as ours, then bfloat16 throughout."""
    runs = []
    for kind in models:
        for precision in ("float32", "bfloat16"):
            impls: list[list[str]] = [[]]
            if kind == "moe":  # stock, and where that multiplies in float32, mended
                impls = [["--impl", "grouped_mm"]]
                impls += [["--impl", "grouped_mm_bf16"]] if precision == "float32" else []
            for impl in impls:
                runs.append((kind, ["--kind", kind, "--precision", precision, *impl, "--compile"]))
    return runs


COLUMNS = (
    ("ms", "ms", "{:.1f}"),
    ("tokens_per_s", "tokens/s", "{:.0f}"),
    ("peak_gib", "peak GiB", "{:.2f}"),
    ("temp_gib", "temp GiB", "{:.2f}"),
    ("argument_gib", "args GiB", "{:.2f}"),
    ("mfu", "MFU", "{:.1%}"),
    ("drop", "dropped", "{:.1%}"),
    ("compile_s", "compile s", "{:.1f}"),
)


def line(record: dict[str, Any] | None = None) -> str:
    """The table's head, or a line of it."""
    if record is None:
        return f"{'':40}" + "".join(f"{title:>11}" for _, title, _ in COLUMNS)
    if "error" in record:
        return f"{record['name']:40}  {record['error']}"
    cells = ["–" if record.get(k) is None else f.format(record[k]) for k, _, f in COLUMNS]
    return f"{record['name']:40}" + "".join(f"{cell:>11}" for cell in cells)


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the variants and prints the table."""
    default = Variant()
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--model", nargs="+", choices=["dense", "moe"], default=["dense", "moe"])
    parser.add_argument("--dispatcher", nargs="+", default=[default.dispatcher],
                        help="gather, einsum or dropless; each is a variant")  # fmt: skip
    parser.add_argument("--capacity", nargs="+", type=float, default=[default.capacity],
                        help="capacity factors; each is a variant")  # fmt: skip
    parser.add_argument("--remat", default=default.remat, help="model.remat, by name")
    parser.add_argument("--unroll", type=int, default=default.unroll)
    parser.add_argument("--steps", type=int, default=default.steps, help="timed, at least")
    parser.add_argument("--batch", type=int, default=default.batch)
    parser.add_argument("--text", type=int, default=default.text)
    parser.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE",
                        help="of the configuration: model.decoder.moe.group_size=512")  # fmt: skip
    parser.add_argument("--peers", action="store_true", help="Hugging Face's LLaVA as well")
    parser.add_argument("--tiny", action="store_true", help="a shape for testing on a CPU")
    parser.add_argument("--profile", action="store_true", help="where a step's time goes")
    parser.add_argument("--timeout", type=float, default=400, help="seconds a variant may take")
    parser.add_argument("--out", type=Path, help="a JSON file for the records")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    a = parser.parse_args(argv)
    if a.one is not None:
        print(json.dumps(measure(Variant(**json.loads(a.one)))))
        return

    same = {
        n: getattr(a, n) for n in ("remat", "unroll", "steps", "batch", "text", "tiny", "profile")
    }
    same["overrides"] = tuple(pair.partition("=")[::2] for pair in a.set)
    variants = []
    for model in a.model:
        for dispatcher in a.dispatcher if model == "moe" else a.dispatcher[:1]:
            # What never drops has no capacity to vary.
            several = model == "moe" and dispatcher != "dropless"
            for capacity in a.capacity if several else a.capacity[:1]:
                variants.append(Variant(model, dispatcher, capacity, **same))
    records: list[dict[str, Any]] = []

    def add(new: dict[str, Any]) -> None:
        records.append(new)
        print(line(new), flush=True)
        if a.out:  # after each: a machine may be taken away
            a.out.write_text(json.dumps(records, indent=1) + "\n", encoding="utf-8")

    print(line(), flush=True)
    for v in variants:
        add(measure_apart(v, a.timeout))
    ours = [(v.model, r) for v, r in zip(variants, records, strict=True) if "error" not in r]
    if a.peers:
        from benchmarks import peers

        sizes = ["--batch", str(a.batch), "--text", str(a.text)] + ["--tiny"] * a.tiny
        for model, arguments in peer_runs(a.model):
            for new in peers.run(["model", *arguments, *sizes], a.timeout):
                # The same model, so the same FLOPs over the same peak; not so for tiny shapes.
                if "ms" in new and not a.tiny and (same_model := dict(reversed(ours)).get(model)):
                    tflop_per_s = 1e3 * same_model["model_tflop"] / new["ms"]
                    new["mfu"] = tflop_per_s / same_model["peak_tflop_per_s"]
                add(new)
    for _, record in ours:
        print(
            f"{record['name']}: {record['device']}, {record['params'] / 1e6:.1f} M parameters, "
            f"{record['active_params'] / 1e6:.1f} M active, {record['model_tflop']:.4g} model "
            f"TFLOP a step, peak {record['peak_tflop_per_s']:.4g} TFLOP/s"
        )
    if any("error" in r for r in records):
        sys.exit(1)


if __name__ == "__main__":
    # The step alone may take most of the device; JAX's default would leave a quarter of it out.
    os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.92")
    main()
