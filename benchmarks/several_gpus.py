"""The training step on several GPUs of one host beside one: scaling, exchange, parity, faults.

python -m benchmarks.several_gpus [--gpus=2] [--parts=parity,scaling,exchange,faults] [--out=o.json]
python -m benchmarks.several_gpus --tiny --gpus=2        # simulated devices of a CPU

  parity    losses of steps in float32 on every factorisation of the mesh over those of one GPU
  scaling   `benchmarks.train_step`'s dense and MoE models, 32 rows a GPU, on data, fsdp and expert
            meshes: efficiency is tokens/s over as many times one GPU's. Goal: at least 0.92.
            Also the share of a step in which a GPU exchanges, and the share of that in which it
            computes at the same time
  exchange  the MoE model with experts on all GPUs: by capacity; dropless, pieces at their true
            lengths (ragged all-to-all) and padded
  faults    a run of one process a GPU, one of which is killed; started again on a single GPU, it
            goes on from the last checkpoint
  peers     transformers' LLaVA under FSDP2 (`benchmarks.peers`), one GPU and all

A part's variants are processes that compile at once and are timed one after the other: each has a
share of the GPUs' memory. NVLink multicast stays off (NCCL_NVLS_ENABLE=0).
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks import train_step
from benchmarks.train_step import ROOT, Variant

GPU_GIB = 79.6  # of an H100 that the driver gives
AXES = ("data", "fsdp", "expert", "tensor")
# What a variant needs at its peak: weights, moments, gradients and what the backward pass reads.
NEEDS_GIB = {"dense": 24.0, "moe": 39.0}


def scaling(gpus: int, same: dict[str, Any]) -> Iterator[list[Variant]]:
    """Groups of variants that fit beside each other in memory."""
    yield [
        Variant("dense", **same),
        *(Variant("dense", mesh=((axis, gpus),), **same) for axis in ("data", "fsdp")),
    ]
    moe = dict(same, capacity=1.0)
    yield [Variant("moe", **moe), Variant("moe", mesh=(("expert", gpus),), **moe)]
    yield [Variant("moe", mesh=((axis, gpus),), **moe) for axis in ("data", "fsdp")]


def exchanged(gpus: int, same: dict[str, Any]) -> Iterator[list[Variant]]:
    """Dropless on one GPU, and on all with both kinds of exchange."""
    experts = (("expert", gpus),)
    yield [
        Variant("moe", "dropless", **same),
        Variant("moe", "dropless", mesh=experts, **same),
    ]
    yield [
        Variant("moe", "dropless", mesh=experts, padded=True, **same),
        Variant("moe", "gather", 1.25, mesh=experts, **same),
    ]


def together(variants: list[Variant], timeout: float, tiny: bool) -> list[dict[str, Any]]:
    """`train_step.measure` of each in a process of its own, compiled at once, timed in turn."""
    children = []
    with tempfile.TemporaryDirectory() as folder:
        for v in variants:
            v = dataclasses.replace(v, turn=(folder, len(variants)))
            env = dict(os.environ)
            # The rest is CUDA's own and NCCL's.
            fraction = (
                0.9
                * NEEDS_GIB[v.model]
                / max(GPU_GIB, sum(NEEDS_GIB[one.model] for one in variants))
            )
            env["XLA_PYTHON_CLIENT_MEM_FRACTION"] = f"{fraction:.3f}"
            if tiny:
                env |= _simulated(v.devices())
            command = ["-m", "benchmarks.train_step", "--one", json.dumps(dataclasses.asdict(v))]
            out = tempfile.TemporaryFile("w+")
            children.append(
                (
                    v,
                    out,
                    subprocess.Popen([sys.executable, *command], cwd=ROOT, stdout=out, env=env),
                )
            )
        end = time.monotonic() + timeout
        while time.monotonic() < end and any(c.poll() is None for *_, c in children):
            for *_, child in children:
                if child.poll() is not None:
                    train_step.arrive(folder, child.pid)
            time.sleep(0.1)
        records = []
        for v, out, child in children:
            failed = f"timed out after {timeout:g} s" if child.poll() is None else None
            child.kill()
            if child.wait() and not failed:
                failed = f"exit code {child.returncode}: see above"
            out.seek(0)
            record = {"name": v.name(), "error": failed} if failed else None
            records.append(record or json.loads(out.read().splitlines()[-1]))
            out.close()
    return records


def _simulated(count: int) -> dict[str, str]:
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={count}"
    return {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}


def parity(gpus: int) -> list[dict[str, Any]]:
    """Largest relative difference of a loss or gradient norm of three steps to one device's."""
    import jax

    from vimoe_jax.model.blueprint import Blueprint
    from vimoe_jax.parallel.mesh import make_mesh, to_mesh
    from vimoe_jax.train.program import Program

    jax.config.update("jax_default_matmul_precision", "highest")

    def numbers(v: Variant) -> list[float]:
        c = train_step.configuration(v)
        mesh = make_mesh(dict(v.mesh), jax.devices()[: v.devices()])
        blueprint = Blueprint.create(c.model, c.model.decoder.vocab_size)
        program = Program.create(c, blueprint, mesh)
        state = program.init(jax.random.key(0))
        batch = to_mesh(train_step.random_batch(c, blueprint.vocab_size), mesh)
        step, out = program.step(), []
        for _ in range(3):
            state, metrics = step(state, batch)
            out += [float(metrics.tokens.loss / metrics.tokens.weight), float(metrics.grad_norm)]
        return out

    records = []
    for model, dispatcher in (("dense", ""), ("moe", "gather"), ("moe", "dropless")):
        alone = None
        for sizes in [(1, 1, 1, 1), *_factorisations(gpus)]:
            mesh = tuple((a, n) for a, n in zip(AXES, sizes, strict=True) if n > 1)
            if model == "dense" and dict(mesh).get("expert"):
                continue
            rows = 16 // math.prod(sizes)
            v = Variant(model, dispatcher or "gather", mesh=mesh, batch=rows, text=24, tiny=True)
            got = numbers(v)
            if alone is None:
                alone = got
                continue
            apart = max(abs(a - b) / abs(b) for a, b in zip(got, alone, strict=True))
            records.append({"name": v.name(), "difference": apart})
            print(f"{v.name():40}{apart:11.1e}", flush=True)
    return records


def _factorisations(n: int) -> Iterator[tuple[int, ...]]:
    divisors = [d for d in range(1, n + 1) if n % d == 0]
    # Two heads of keys and values: no more parts than that.
    yield from (
        sizes
        for sizes in itertools.product(divisors, repeat=len(AXES))
        if math.prod(sizes) == n and sizes[AXES.index("tensor")] <= 2
    )


COLUMNS = (
    ("ms", "ms", "{:.1f}"),
    ("tokens_per_s", "tokens/s", "{:.0f}"),
    ("efficiency", "efficiency", "{:.3f}"),
    ("collectives", "exchange", "{:.1%}"),
    ("overlapped", "overlapped", "{:.1%}"),
    ("peak_gib", "peak GiB", "{:.2f}"),
    ("mfu", "MFU", "{:.1%}"),
    ("drop", "dropped", "{:.1%}"),
    ("compile_s", "compile s", "{:.1f}"),
)


def show(records: list[dict[str, Any]]) -> None:
    """Prints a part's lines."""
    print(f"{'':36}" + "".join(f"{title:>11}" for _, title, _ in COLUMNS))
    for r in records:
        if "error" in r:
            print(f"{r['name']:36}  {r['error']}")
            continue
        cells = ["–" if r.get(k) is None else f.format(r[k]) for k, _, f in COLUMNS]
        print(f"{r['name']:36}" + "".join(f"{cell:>11}" for cell in cells))
        if sent := r.get("sent_gib"):
            told = ", ".join(f"{kind} {size:.3g}" for kind, size in sorted(sent.items()))
            print(f"{'':36}  GiB a GPU sends in a step: {told}")
    sys.stdout.flush()


def compare(records: list[dict[str, Any]], alone: dict[str, Any] | None) -> None:
    """Sets each record's efficiency over the same model's on one GPU."""
    for r in records:
        if alone and "ms" in r and "ms" in alone:
            r["efficiency"] = r["tokens_per_s"] / r["devices"] / alone["tokens_per_s"]


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the parts; 1 if something failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gpus", type=int, default=2)
    parser.add_argument("--parts", default="parity,scaling,exchange,faults,peers")
    parser.add_argument("--groups", default="", help="numbers of a part's groups; all if empty")
    parser.add_argument("--batch", type=int, default=32, help="rows a GPU")
    parser.add_argument("--text", type=int, default=60)
    parser.add_argument("--steps", type=int, default=20, help="timed, at least")
    parser.add_argument("--remat", default="dots", help="model.remat, by name")
    parser.add_argument("--unroll", type=int, default=28)
    parser.add_argument("--timeout", type=float, default=300, help="seconds a group may take")
    parser.add_argument("--tiny", action="store_true", help="a shape for simulated devices")
    parser.add_argument("--out", type=Path, help="a JSON file for the records")
    parser.add_argument("--part", help=argparse.SUPPRESS)
    a = parser.parse_args(argv)
    if a.part:
        parity(a.gpus)
        return 0

    same = {n: getattr(a, n) for n in ("batch", "text", "steps", "remat", "unroll", "tiny")}
    same["profile"] = not a.tiny
    results: dict[str, Any] = {"gpus": a.gpus}
    failed = False

    def keep(part: str, records: Any) -> None:
        results.setdefault(part, []).extend(records)
        if a.out:  # after each group: a machine may be taken away
            a.out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")

    for part in a.parts.split(","):
        print(f"\n{part}", flush=True)
        if part == "parity":
            env = dict(os.environ, XLA_PYTHON_CLIENT_PREALLOCATE="false")
            env |= _simulated(a.gpus) if a.tiny else {}
            command = [sys.executable, "-m", "benchmarks.several_gpus", "--part=parity"]
            failed |= bool(
                subprocess.run([*command, f"--gpus={a.gpus}"], cwd=ROOT, env=env).returncode
            )
        elif part in ("scaling", "exchange"):
            alone: dict[str, dict[str, Any]] = {}
            groups = list((scaling if part == "scaling" else exchanged)(a.gpus, same))
            chosen = [int(n) for n in a.groups.split(",")] if a.groups else range(len(groups))
            for number in chosen:
                records = together(groups[number], a.timeout, a.tiny)
                for v, r in zip(groups[number], records, strict=True):
                    if not v.mesh:
                        alone[v.model] = r
                    compare([r], alone.get(v.model))
                show(records)
                keep(part, records)
                failed |= any("error" in r for r in records)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
