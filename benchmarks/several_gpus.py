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

A part's variants are processes that compile at once and then have the GPUs one after the other.
NVLink multicast stays off (NCCL_NVLS_ENABLE=0).
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

PARITY = 1e-5  # relative, of float32
AXES = ("data", "fsdp", "expert", "tensor")


def scaling(gpus: int, same: dict[str, Any]) -> Iterator[list[Variant]]:
    """Groups of variants that compile at once."""
    meshes = [((axis, gpus),) for axis in ("data", "fsdp", "expert")]
    yield [Variant("dense", mesh=mesh, **same) for mesh in ((), *meshes[:2])]
    moe = dict(same, capacity=1.0)
    yield [Variant("moe", mesh=mesh, **moe) for mesh in ((), *meshes)]


def exchanged(gpus: int, same: dict[str, Any]) -> Iterator[list[Variant]]:
    """Dropless on one GPU, and on all with both kinds of exchange."""
    experts = (("expert", gpus),)
    yield [
        Variant("moe", "dropless", **same),
        Variant("moe", "dropless", mesh=experts, **same),
        Variant("moe", "dropless", mesh=experts, padded=True, **same),
        Variant("moe", "gather", 1.25, mesh=experts, **same),
    ]


def together(variants: list[Variant], timeout: float, tiny: bool) -> list[dict[str, Any]]:
    """`train_step.measure` of each in a process of its own, compiled at once, timed in turn."""
    children = []
    with tempfile.TemporaryDirectory() as folder:
        for v in variants:
            v = dataclasses.replace(v, turn=(folder, len(variants)))
            # While one runs, the others have compiled and hold next to nothing.
            env = dict(os.environ, XLA_PYTHON_CLIENT_PREALLOCATE="false")
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


def killed(gpus: int, tiny: bool) -> list[dict[str, Any]]:
    """A run of one process a GPU, the last of which is killed; then the same run on one GPU.

    Losses are compared with an undisturbed run's on one GPU, in float32.
    """
    from benchmarks.input_pipeline import make_source

    steps, every = (12, 4) if tiny else (60, 10)
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "data"
        data.mkdir()
        make_source(data, 48)
        config = Path(folder) / "config.py"
        config.write_text(KILLED.format(data=data / "data.jsonl", steps=steps, every=every))

        def command(name: str, count: int) -> list[str]:
            of_each = "--devices=1" if tiny else "--gpus=1"
            launch = [sys.executable, "launch/local.py", f"--num_processes={count}", of_each]
            return [*launch, f"--workdir_root={folder}", f"--name={name}", "--max_restarts=0",
                    "--", f"--config={config}"]  # fmt: skip

        def losses(name: str) -> dict[int, float]:
            path = Path(folder) / name / "metrics.jsonl"
            if not path.exists():
                return {}
            read = [json.loads(line) for line in path.read_text().splitlines()]
            return {r["step"]: r["train/loss"] for r in read if "train/loss" in r}

        env = dict(os.environ, XLA_PYTHON_CLIENT_PREALLOCATE="false")
        quiet = dict(cwd=ROOT, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        alone = subprocess.Popen(command("alone", 1), **quiet)
        run = subprocess.Popen(command("run", gpus), **quiet)
        at = None
        while run.poll() is None:
            time.sleep(0.02)
            path = Path(folder) / "run" / "metrics.jsonl"
            at = len(path.read_text().splitlines()) if path.exists() else 0
            if at > every + 2:
                _kill(gpus - 1, folder)
                break
        first = run.wait()
        saved = sorted(int(p.name) for p in (Path(folder) / "run/checkpoints").glob("[0-9]*"))
        again = subprocess.run(command("run", 1), **{**quiet, "stdout": subprocess.PIPE}, text=True)
        alone.wait()
        whole, resumed = losses("alone"), losses("run")
        same = whole.keys() == resumed.keys()
        apart = max((abs(resumed[s] - x) / x for s, x in whole.items() if s in resumed), default=1)
        record = {
            "name": f"killed on {gpus}, goes on on one", "killed_after": at, "exit_code": first,
            "resumed_at": saved[-1] if saved else None, "again": again.returncode,
            "same_steps": same, "difference": apart,
        }  # fmt: skip
    print(
        f"one of {gpus} killed after step {at}: the launcher ends with {first}; on one GPU it goes "
        f"on at step {record['resumed_at']} and ends with {again.returncode}; losses of all "
        f"{len(whole)} steps at most {apart:.1e} from an undisturbed run's"
    )
    if not same or first == 0 or again.returncode or apart > 1e-4:
        record["error"] = f"the run did not go on as it should: {again.stdout[-2000:]}"
        print(record["error"])
    return [record]


def _kill(process: int, folder: str) -> None:
    """SIGKILL to one process of the launcher's, found by its command line."""
    import psutil

    for one in psutil.process_iter(["cmdline"]):
        line = " ".join(one.info["cmdline"] or [])
        if "vimoe_jax.main" in line and f"{folder}/run" in line:
            if f"--process_id={process}" in line:
                one.kill()


KILLED = """
from vimoe_jax.config import defaults


def get_config():
    c = defaults()
    c.data.dataset, c.data.source = "jsonl", "{data}"
    c.data.train_split = c.data.val_split = ""
    c.data.test_splits, c.data.vocab_size, c.data.text_length = (), 330, 64
    c.model.image_size, c.model.patch_size, c.model.dtype = 32, 8, "float32"
    c.model.decoder.moe.num_experts, c.model.decoder.moe.dispatcher = 4, "dropless"
    c.eval.every, c.eval.at_end = 0, False
    c.train.steps, c.train.batch_size, c.train.log_every = {steps}, 16, 1
    c.checkpoint.every, c.checkpoint.keep_best = {every}, 0
    return c
"""


def peers_of(gpus: int, timeout: float, tiny: bool, sizes: Sequence[str]) -> list[dict[str, Any]]:
    """transformers' dense LLaVA, compiled, on one GPU and under FSDP2 on all."""
    from benchmarks import peers

    model = ["model", "--kind", "dense", "--precision", "float32", "--compile", *sizes]
    records = []
    for count in (1, gpus):
        records += peers.run([*model, f"--gpus={count}", *["--tiny"] * tiny], timeout)
        records[-1]["devices"] = count
    compare(records, records[0])
    return records


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
        return int(any(r["difference"] > PARITY for r in parity(a.gpus)))

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
        elif part == "faults":
            records = killed(a.gpus, a.tiny)
            keep(part, records)
            failed |= any("error" in r for r in records)
        elif part == "peers":
            sizes = [f"--batch={a.batch}", f"--text={a.text}"]
            records = peers_of(a.gpus, a.timeout, a.tiny, sizes)
            show(records)
            keep(part, records)
            failed |= any("error" in r for r in records)
        else:
            parser.error(f"--parts: {part}: no such part")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
