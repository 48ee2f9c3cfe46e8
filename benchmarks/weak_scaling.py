"""Weak scaling on paper: one model, 8 rows a chip, 8 to 4096 chips of TPU v5p.

    python -m benchmarks.weak_scaling [--chips=8,64,256,512,1024,4096] [--dir=DIR] [--plot=FILE.png]

Every point is a plan (`python -m vimoe_jax.main --plan`) in a process of its own: the real training
step of configs/moe_10b.py, compiled for that many chips by TPUs' own compiler, nothing run. Needs
libtpu (requirements-plan.txt) and five to ten minutes a point on two cores. Points that DIR holds
already are not compiled again. docs/scaling.md says what the numbers leave out.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
CONFIG = "configs/moe_10b.py"
ROWS = 8  # a chip

# chips -> (topology, mesh): parameters along one or two axes of the torus, experts along another
POINTS = {
    8: ("v5p:2x2x2", dict(data=1, fsdp=2, expert=4)),
    64: ("v5p:4x4x4", dict(data=1, fsdp=16, expert=4)),
    256: ("v5p:8x8x4", dict(data=1, fsdp=32, expert=8)),
    512: ("v5p:8x8x8", dict(data=1, fsdp=64, expert=8)),
    1024: ("v5p:8x8x16", dict(data=8, fsdp=16, expert=8)),
    4096: ("v5p:16x16x16", dict(data=16, fsdp=16, expert=16)),
}


def plan(chips: int, folder: Path) -> dict[str, Any]:
    """The plan of a point, compiled if `folder` does not hold it; {"error"} if that failed."""
    topology, mesh = POINTS[chips]
    path = folder / f"{chips}.json"
    if not path.exists():
        rows = ROWS * chips
        fields = {f"mesh.{axis}": size for axis, size in mesh.items()}
        fields |= {"train.batch_size": rows, "eval.batch_size": rows}
        command = [sys.executable, "-m", "vimoe_jax.main", f"--config={CONFIG}", "--plan"]
        command += [f"--topology={topology}", f"--out={path.resolve()}"]
        command += [f"--config.{name}={value}" for name, value in fields.items()]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        if not path.exists():
            last = (done.stderr.strip() or done.stdout.strip()).splitlines()[-1:]
            return {"error": last[0] if last else f"exit code {done.returncode}"}
    return json.loads(path.read_text(encoding="utf-8"))


def row(chips: int, p: dict[str, Any]) -> str:
    """A line of the table of docs/scaling.md."""
    if "error" in p:
        return f"| {chips} | {p['error']} |"
    r, gib = p["roofline"], 2**30
    mesh = " × ".join(f"{axis} {n}" for axis, n in p["mesh"].items() if n > 1)
    links = sum(r["links"].values())
    milliseconds = (r["compute"], r["memory"], links, r["bound"], r["exposed"])
    times = " | ".join(f"{1e3 * t:.0f}" for t in milliseconds)
    sent = sum(s["bytes"] for s in p["sent"]) / gib
    return (
        f"| {chips} | {mesh} | {p['memory']['total'] / gib:.1f} | {sent:.1f} | {times} | "
        f"{r['mfu_bound']:.1%} | {r['mfu_exposed']:.1%} |"
    )


HEADER = (
    "| chips | mesh | GiB a chip | GiB sent a chip | compute ms | memory ms | links ms | "
    "bound ms | exposed ms | MFU ≤ | MFU ≤, nothing overlaps |\n|" + "---|" * 11
)


def plot(plans: dict[int, dict[str, Any]], path: Path) -> None:
    """Milliseconds of a step, and MFU bounds, over the number of chips."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    chips = [n for n, p in plans.items() if "error" not in p]
    lines = [plans[n]["roofline"] for n in chips]
    times = {
        "compute": [1e3 * r["compute"] for r in lines],
        "memory": [1e3 * r["memory"] for r in lines],
        "links": [1e3 * sum(r["links"].values()) for r in lines],
    }
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    for name, values in times.items():
        left.plot(chips, values, marker="o", label=name)
    left.set(ylabel="ms a step, each alone", ylim=(0, None))
    right.plot(
        chips, [100 * r["mfu_bound"] for r in lines], marker="o", label="all overlaps: the bound"
    )
    right.plot(
        chips, [100 * r["mfu_exposed"] for r in lines], marker="o", label="sending overlaps nothing"
    )
    right.set(ylabel="MFU, % at most", ylim=(0, 100))
    for axes in (left, right):
        axes.set(xscale="log", xlabel="TPU v5p chips, 8 rows each")
        axes.set_xticks(chips, [str(n) for n in chips])
        axes.minorticks_off()
        axes.grid(alpha=0.3)
        axes.legend(frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


def main() -> None:
    """Plans every point, prints the table, draws the plot."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--chips", default=",".join(map(str, POINTS)))
    parser.add_argument("--dir", type=Path, default=Path("runs/weak_scaling"))
    parser.add_argument("--plot", type=Path)
    args = parser.parse_args()
    args.dir.mkdir(parents=True, exist_ok=True)
    plans = {}
    print(HEADER)
    for chips in map(int, args.chips.split(",")):
        plans[chips] = plan(chips, args.dir)
        print(row(chips, plans[chips]), flush=True)
    if args.plot:
        plot(plans, args.plot)


if __name__ == "__main__":
    main()
