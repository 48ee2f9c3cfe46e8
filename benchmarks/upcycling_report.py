"""The table and the curves of `benchmarks.upcycling`'s numbers.

python -m benchmarks.upcycling --report=docs/results --read o01.json o2.json
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

ARMS = ("dense", "scratch", "copy", "drop", "granular", "importance")
Curve = list[dict[str, float]]


def merged(read: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """One study of several's seeds, which must be of one size, device and version."""
    first = read[0]
    for other in read[1:]:
        if any(other[key] != first[key] for key in ("size", "device", "jax")):
            raise SystemExit("--read: the files are of different sizes, devices or versions")
    runs = [run for one in read for run in one["runs"]]
    if len({(r["arm"], r["seed"]) for r in runs}) < len(runs):
        raise SystemExit("--read: a seed is in more than one file")
    counts = {arm: sum(r["arm"] == arm for r in runs) for arm in ("parent", *ARMS)}
    if len(set(counts.values())) > 1:
        raise SystemExit(f"--read: not every seed has every arm: {counts}")
    return first | {"runs": runs}


def report(results: dict[str, Any], folder: Path) -> str:
    """Writes `upcycling.md` and `upcycling.png`; returns the text."""
    size, runs = results["size"], results["runs"]
    seeds = sorted({r["seed"] for r in runs})
    parent = [r["curve"][-1]["loss"] for r in runs if r["arm"] == "parent"]
    own = {
        arm: sorted((r for r in runs if r["arm"] == arm), key=lambda r: r["seed"]) for arm in ARMS
    }
    curves = {arm: [r["curve"] for r in own[arm]] for arm in ARMS}
    # The time in which the fastest arm is done: what every arm has reached by then.
    limit = min(c[-1]["seconds"] for of_arm in curves.values() for c in of_arm)
    slowest = max(c[-1]["seconds"] for of_arm in curves.values() for c in of_arm)
    lines = [
        "# Upcycling on ViScenes",
        "",
        f"{size['train']:,} pictures, width {size['width']}, {size['depth']} layers in tower and "
        f"decoder, batches of {size['batch_size']}; {results['device']}, JAX {results['jax']}; "
        f"seeds {', '.join(map(str, seeds))}. Parent after {size['parent_steps']} steps: "
        f"validation loss {_spread(parent)}. "
        f"Every arm then gets {size['extra']:g}× the parent's FLOPs. By "
        "`python -m benchmarks.upcycling --report=docs/results`, one seed per call (`--seeds`, "
        "`--read`).",
        "",
        "| arm | parameters | active | steps | loss at once | at half | at the end "
        "| over dense | accuracy |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for arm in ARMS:
        columns = [
            arm,
            f"{own[arm][0]['parameters']:,}",
            f"{own[arm][0]['active']:,}",
            f"{curves[arm][0][-1]['step']}",
            _spread([c[0]["loss"] for c in curves[arm]]),
            _spread([c[len(c) // 2]["loss"] for c in curves[arm]]),
            _spread([c[-1]["loss"] for c in curves[arm]]),
            "–" if arm == "dense" else _spread(_over_dense(curves, arm, "flops")[:, -1], 3),
            _spread([c[-1]["accuracy"] for c in curves[arm]]),
        ]
        lines.append(f"| {' | '.join(columns)} |")
    lines += [
        "",
        "Mean ± standard deviation over seeds; loss and accuracy are per answer token. *Over "
        "dense*: the loss over the dense arm's of the same seed, which has the same parent and the "
        "same order of pictures. What the arms are: `benchmarks/upcycling.py`.",
        "",
        "![Validation loss over extra FLOPs, and over the dense arm's](upcycling.png)",
        "",
        "## At equal time",
        "",
        f"After {limit:.0f} s of training, the fastest run's; the slowest takes {slowest:.0f} s. "
        f"Runs of one arm differ in speed by up to {max(_range(x) for x in curves.values()):.0%}, "
        "more than arms do: these columns say little.",
        "",
        "| arm | ms a step | loss | over dense |",
        "|---|---|---|---|",
    ]
    for arm in ARMS:
        by_then = [_at(c, "seconds", limit) for c in curves[arm]]
        over = [x / _at(d, "seconds", limit) for x, d in zip(by_then, curves["dense"], strict=True)]
        step = [1e3 * c[-1]["seconds"] / c[-1]["step"] for c in curves[arm]]
        shown = "–" if arm == "dense" else _spread(over, 3)
        lines.append(f"| {arm} | {_spread(step, 1)} | {_spread(by_then)} | {shown} |")
    text = "\n".join(lines) + "\n"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "upcycling.md").write_text(text, encoding="utf-8")
    _plot(curves, folder / "upcycling.png")
    return text


def _spread(values: Sequence[float] | np.ndarray, digits: int = 4) -> str:
    mean = f"{statistics.mean(values):.{digits}f}"
    return mean if len(values) == 1 else f"{mean} ± {statistics.stdev(values):.{digits}f}"


def _range(curves: list[Curve]) -> float:
    times = [c[-1]["seconds"] for c in curves]
    return max(times) / min(times) - 1


def _at(curve: Curve, unit: str, where: Any) -> Any:
    """The loss at a place on an axis, between the two points around it."""
    return np.interp(where, [p[unit] for p in curve], [p["loss"] for p in curve])


def _over_dense(curves: dict[str, list[Curve]], arm: str, unit: str) -> np.ndarray:
    """Loss over the dense arm's of the same seed, (seeds, points of the arm's first curve)."""
    rows = []
    for mine, dense in zip(curves[arm], curves["dense"], strict=True):
        # Steps are whole, so that budgets differ by a part of a step: np.interp holds the ends.
        places = np.array([p[unit] for p in mine])
        rows.append(np.array([p["loss"] for p in mine]) / _at(dense, unit, places))
    return np.array(rows)


def _plot(curves: dict[str, list[Curve]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(10, 4))
    for number, arm in enumerate(ARMS):
        color, flops = f"C{number}", np.array([p["flops"] for p in curves[arm][0]]) / 1e15
        losses = np.array([[p["loss"] for p in c] for c in curves[arm]])
        # The loss of random parameters would leave the rest no room.
        shown = slice(1, None) if arm == "scratch" else slice(None)
        left.plot(flops[shown], losses.mean(0)[shown], color=color, label=arm, marker=".")
        if arm in ("dense", "scratch"):
            continue
        over = _over_dense(curves, arm, "flops")
        mean, apart = over.mean(0), over.std(0, ddof=1) if len(over) > 1 else 0 * over[0]
        right.plot(flops, mean, color=color, label=arm, marker=".")
        right.fill_between(flops, mean - apart, mean + apart, color=color, alpha=0.15, lw=0)
    right.axhline(1, color="C0", label="dense")
    right.set(xlabel="extra PFLOPs", ylabel="loss over dense's, same seed")
    right.set(ylim=(0.85, 1.25), title="upcycled (band: ± one standard deviation)")
    left.set(xlabel="extra PFLOPs", ylabel="validation loss", yscale="log", title="all arms")
    left.set_yticks(ticks := [0.05, 0.1, 0.2, 0.5], [f"{t:g}" for t in ticks])
    left.minorticks_off()
    for axes in (left, right):
        axes.legend(fontsize=8)
        axes.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
