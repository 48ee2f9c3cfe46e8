"""The training step on several GPUs of one host beside one: scaling, exchange, parity, faults.

python -m benchmarks.several_gpus [--gpus=2] [--parts=parity,faults,tune,scaling,exchange,peers]
python -m benchmarks.several_gpus --tiny --gpus=2        # simulated devices of a CPU

  parity    losses of steps in float32 on every factorisation of the mesh over those of one GPU
  faults    a run of one process a GPU, one of which is killed; started again on half as many, it
            goes on from the last checkpoint
  tune      the dense model on fsdp and the MoE on expert under `benchmarks.turns.TUNED`
  scaling   `benchmarks.train_step`'s dense and MoE models, 32 rows a GPU, on data, fsdp and expert
            meshes of 2, 4, … GPUs: efficiency is tokens/s over as many times one GPU's. Goal: at
            least 0.92. Also the share of a step in which a GPU exchanges, and the share of that in
            which it computes at the same time
  exchange  the MoE model with experts on all GPUs: by capacity; dropless, pieces padded and at
            their true lengths (ragged all-to-all, by XLA's kernel and by NCCL)
  peers     transformers' LLaVA under FSDP2 (`benchmarks.peers`), one GPU and all

Routers are untrained, and send half of all choices beyond an even share; with --balanced experts
are chosen at random instead. While variants compile, parity and faults run beside them; all else
has the GPUs to itself. NVLink multicast stays off (NCCL_NVLS_ENABLE=0).
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks import same_losses, turns
from benchmarks.train_step import Variant
from benchmarks.turns import FLAGS, TUNED, Run

PARTS = ("parity", "faults", "tune", "scaling", "exchange", "peers")


def tuning(gpus: int, same: dict[str, Any], flags: str) -> list[Run]:
    """One GPU, then the kinds of exchange under each set of flags."""
    moe = dict(same, capacity=1.0)
    tuned = [
        Variant("dense", mesh=(("fsdp", gpus),), **same),
        Variant("moe", mesh=(("expert", gpus),), **moe),
    ]
    alone = [Run(Variant("dense", **same), flags), Run(Variant("moe", **moe), flags)]
    return alone + [Run(v, name) for name in TUNED for v in tuned]


def scaling(gpus: int, same: dict[str, Any], flags: str) -> list[Run]:
    """One GPU, then more and more."""
    moe = dict(same, capacity=1.0)
    found = [Variant("dense", **same), Variant("moe", **moe)]
    counts = [2**i for i in range(1, gpus.bit_length()) if 2**i <= gpus]
    for count in reversed(counts):
        found += [Variant("dense", mesh=((axis, count),), **same) for axis in ("fsdp", "data")]
        found += [Variant("moe", mesh=((a, count),), **moe) for a in ("expert", "fsdp", "data")]
    if gpus >= 4:
        found.append(Variant("moe", mesh=(("fsdp", gpus // 2), ("expert", 2)), **moe))
    return [Run(v, flags) for v in found]


def exchanged(gpus: int, same: dict[str, Any], flags: str) -> list[Run]:
    """Dropless and by capacity on one GPU, and on all with both kinds of exchange."""
    experts = (("expert", gpus),)
    found = [
        Variant("moe", "dropless", **same),
        Variant("moe", "gather", 1.25, **same),
        Variant("moe", "dropless", mesh=experts, parts=0, **same),
        Variant("moe", "gather", 1.25, mesh=experts, **same),
    ]
    runs = [Run(v, flags) for v in found]
    if same["tiny"]:  # XLA on CPU has no ragged all-to-all
        return runs
    whole, cut = (Variant("moe", "dropless", mesh=experts, parts=n, **same) for n in (1, 64))
    return [*runs, Run(cut, flags), Run(whole, "send"), Run(whole, flags)]


def best(records: Sequence[dict[str, Any]]) -> str:
    """The flags under which tokens/s are highest, in the geometric mean over what was tuned."""
    speeds: dict[str, list[float]] = {name: [] for name in TUNED}
    for r in records:
        if "error" not in r and r["devices"] > 1:
            speeds[r["name"].split()[-1]].append(r["tokens_per_s"])
    whole = max(map(len, speeds.values()))
    full = {name: s for name, s in speeds.items() if s and len(s) == whole}
    return max(full, key=lambda name: statistics.geometric_mean(full[name]))


def peers_of(gpus: int, timeout: float, tiny: bool, sizes: Sequence[str]) -> list[dict[str, Any]]:
    """transformers' LLaVA, dense and MoE, compiled: under FSDP2 on all GPUs, and alone on one.

    The two models' runs on one GPU are beside each other.
    """
    from benchmarks import peers

    until, few = time.monotonic() + timeout, ["--tiny"] * tiny
    kinds = ("dense", "moe")

    def run(kind: str, count: int) -> dict[str, Any]:
        impl = ["--impl", "grouped_mm_bf16"] if kind == "moe" else []
        model = ["model", "--kind", kind, "--precision", "float32", "--compile", "--blocks", *impl]
        env = {} if tiny or count > 1 else turns.environment(1, kinds.index(kind))
        left = max(1.0, until - time.monotonic())
        record = peers.run([*model, *sizes, f"--gpus={count}", *few], left, env)[-1]
        return record | {"devices": count}

    on_all = [run(kind, gpus) for kind in kinds]
    with ThreadPoolExecutor(1 if tiny else 2) as threads:
        alone = list(threads.map(run, kinds, (1, 1)))
    for one, all_of in zip(alone, on_all, strict=True):
        compare([one, all_of], one)
    return alone + on_all


COLUMNS = (
    ("ms", "ms", "{:.1f}"),
    ("tokens_per_s", "tokens/s", "{:.0f}"),
    ("efficiency", "efficiency", "{:.3f}"),
    ("computing", "computing", "{:.1f}"),
    ("collectives", "exchange", "{:.1%}"),
    ("overlapped", "overlapped", "{:.1%}"),
    ("peak_gib", "peak GiB", "{:.2f}"),
    ("mfu", "MFU", "{:.1%}"),
    ("drop", "dropped", "{:.1%}"),
    ("compile_s", "compile s", "{:.1f}"),
)


def show(records: Sequence[dict[str, Any]]) -> None:
    """Prints a table."""
    print(f"{'':48}" + "".join(f"{title:>11}" for _, title, _ in COLUMNS))
    for r in records:
        if "error" in r:
            print(f"{r['name']:48}  {r['error']}")
            continue
        cells = ["–" if r.get(k) is None else f.format(r[k]) for k, _, f in COLUMNS]
        print(f"{r['name']:48}" + "".join(f"{cell:>11}" for cell in cells))
        if sent := r.get("sent_gib"):
            told = ", ".join(f"{kind} {size:.3g}" for kind, size in sorted(sent.items()))
            print(f"{'':48}  GiB a GPU sends in a step: {told}")
    sys.stdout.flush()


def compare(records: Sequence[dict[str, Any]], alone: dict[str, Any] | None) -> None:
    """Sets each record's efficiency over the same model's on one GPU."""
    for r in records:
        if alone and "ms" in r and "ms" in alone:
            r["efficiency"] = r["tokens_per_s"] / r["devices"] / alone["tokens_per_s"]


def compare_all(runs: Sequence[Run], records: Sequence[dict[str, Any]]) -> None:
    """`compare` with the run of the same model on one GPU, whatever its flags."""
    alone = {}
    by_name = {r["name"]: r for r in records}
    for run in runs:
        v = run.variant
        if not v.mesh and run.name() in by_name:
            alone[v.model, v.dispatcher, v.capacity] = by_name[run.name()]
    for run in runs:
        v = run.variant
        if record := by_name.get(run.name()):
            compare([record], alone.get((v.model, v.dispatcher, v.capacity)))


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the parts; 1 if something failed."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--gpus", type=int, default=2)
    parser.add_argument("--parts", default=",".join(p for p in PARTS if p != "tune"))
    parser.add_argument("--flags", default="hide",
                        help=f"{', '.join(FLAGS)}; or a file of `tune`'s: its best")  # fmt: skip
    parser.add_argument("--also", default="", help="parts to compile with, for a later run")
    parser.add_argument("--only", default="", help="a pattern that names of variants must match")
    parser.add_argument("--batch", type=int, default=32, help="rows a GPU")
    parser.add_argument("--text", type=int, default=60)
    parser.add_argument("--steps", type=int, default=20, help="timed, at least")
    parser.add_argument("--remat", default="dots", help="model.remat, by name")
    parser.add_argument("--unroll", type=int, default=28)
    parser.add_argument("--balanced", action="store_true",
                        help="choose experts at random: as evenly as a trained router")  # fmt: skip
    parser.add_argument("--at_once", action="store_true",
                        help="compile in the processes that are timed, if memory lets")  # fmt: skip
    parser.add_argument("--compile", type=float, default=300, help="seconds for all to compile")
    parser.add_argument("--turn", type=float, default=60, help="seconds a variant has the GPUs")
    parser.add_argument("--timeout", type=float, default=400, help="seconds for the peers")
    parser.add_argument("--tiny", action="store_true", help="a shape for simulated devices")
    parser.add_argument("--out", type=Path, help="a JSON file for the records")
    a = parser.parse_args(argv)
    chosen = a.parts.split(",")
    if unknown := {*chosen, *filter(None, a.also.split(","))} - set(PARTS):
        parser.error(f"--parts: {', '.join(unknown)}: no such part; there are {', '.join(PARTS)}")
    flags = a.flags
    if flags not in FLAGS:
        if not Path(flags).is_file():
            parser.error(f"--flags: {flags}: neither one of {', '.join(FLAGS)} nor a file")
        flags = best(json.loads(Path(flags).read_text(encoding="utf-8"))["tune"])
    if a.tiny:
        os.environ["JAX_PLATFORMS"] = "cpu"
    else:
        os.environ.setdefault("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(a.gpus))))
    with tempfile.TemporaryDirectory() as folder:
        os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", folder)
        return _run(a, chosen, flags)


def _run(a: argparse.Namespace, chosen: Sequence[str], flags: str) -> int:
    same = {n: getattr(a, n) for n in ("batch", "text", "steps", "remat", "unroll", "tiny")}
    same["profile"] = not a.tiny
    if a.balanced:
        same["overrides"] = (("model.decoder.moe.noise_std", "1000"),)
    results: dict[str, Any] = {"gpus": a.gpus, "flags": flags}
    begun = time.monotonic()

    def say(what: str) -> None:
        print(f"[{time.monotonic() - begun:4.0f} s] {what}", flush=True)

    def keep(part: str, records: Sequence[dict[str, Any]]) -> None:
        results.setdefault(part, []).extend(records)
        write()

    def write() -> None:
        if a.out:  # after each: a machine may be taken away
            a.out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")

    of_part = {
        "tune": tuning(a.gpus, same, flags),
        "scaling": scaling(a.gpus, same, flags),
        "exchange": exchanged(a.gpus, same, flags),
    }
    of_part = {part: [r for r in of if re.search(a.only, r.name())] for part, of in of_part.items()}
    runs = {r: part for part, of in of_part.items() if part in chosen for r in of}
    also = {r for part in a.also.split(",") for r in of_part.get(part, ())}
    # One GPU's first, apart from each other: XLA then knows the fastest kernels of most shapes.
    order = sorted(dict.fromkeys([*runs, *also]), key=lambda r: r.variant.devices())
    order = [] if a.at_once else order
    for record in turns.compile_all([r for r in order if not r.variant.mesh], a.compile):
        say(f"{record['name']}: {record.get('error') or 'compiled'}")
    threads = ThreadPoolExecutor()
    beside: dict[str, Future] = {}
    if "parity" in chosen:
        beside["parity"] = threads.submit(same_losses.parity, a.gpus, a.compile)
    if "faults" in chosen:
        beside["faults"] = threads.submit(same_losses.killed, a.gpus, a.tiny)
    for record in turns.compile_all([r for r in order if r.variant.mesh], a.compile):
        say(f"{record['name']}: {record.get('error') or 'compiled'}")

    def finish() -> None:
        for part, future in beside.items():
            keep(part, future.result())
            say(part)
            for r in results[part]:
                told = f"{r['difference']:.1e}" if "difference" in r else ""
                print(f"  {r['name']:40}  {r.get('error') or told}", flush=True)

    by_name = {r.name(): part for r, part in runs.items()}

    def keep_one(record: dict[str, Any]) -> None:
        keep(by_name[record["name"]], [record])
        say(f"{record['name']}: {record.get('error') or format(record['ms'], '.1f') + ' ms'}")

    in_order = sorted(runs, key=lambda r: bool(r.variant.mesh))
    turns.timed(in_order, a.gpus, a.compile, a.turn, keep_one, finish)
    threads.shutdown()
    timed = [r for part in ("tune", "scaling", "exchange") for r in results.get(part, [])]
    compare_all(list(runs), timed)
    write()
    if timed:
        show(timed)
    if "peers" in chosen:
        sizes = [f"--batch={a.batch}", f"--text={a.text}"]
        keep("peers", peers_of(a.gpus, a.timeout, a.tiny, sizes))
        say("peers")
        show(results["peers"])
    return int(any("error" in r for part in PARTS for r in results.get(part, [])))


if __name__ == "__main__":
    sys.exit(main())
