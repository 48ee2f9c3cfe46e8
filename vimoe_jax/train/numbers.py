"""What is logged of a step: its metrics, read from the device, as named numbers."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from vimoe_jax.model.tokens import TokenKind
from vimoe_jax.moe.report import MoEReport
from vimoe_jax.train.step import StepMetrics


def of_step(m: StepMetrics) -> dict[str, float | list[float]]:
    """By name as in `metrics.jsonl`."""
    weight = max(float(m.tokens.weight), 1.0)
    numbers: dict[str, float | list[float]] = {
        "train/loss": float(m.tokens.loss) / weight,
        "train/accuracy": float(m.tokens.correct) / weight,
        "train/aux_loss": float(m.aux_loss),
        "train/grad_norm": float(m.grad_norm),
        "train/learning_rate": float(m.learning_rate),
        "train/skipped_steps": float(m.health.skipped),
    }
    for part, report in m.moe.items():
        numbers |= {f"train/moe/{part}/{n}": v for n, v in _moe_numbers(report).items()}
    return numbers


def _moe_numbers(layers: MoEReport) -> dict[str, float | list[float]]:
    """What a part's MoE layers report.

    Fractions and entropy are over the choices (or tokens) of all its layers together; the maximal
    load and the losses are means over layers. `…_by_layer` lists one value a layer, first to last.
    """
    total = jax.tree.map(lambda a: a.sum(0), layers)
    drops, loads = total.drop_fraction_by_kind(), np.asarray(layers.max_load())
    numbers: dict[str, float | list[float]] = {"drop_fraction": float(total.drop_fraction())}
    for kind in TokenKind:
        if total.tokens[kind] > 0:
            numbers[f"drop_fraction_{kind.name.lower()}"] = float(drops[kind])
    numbers |= {
        "unserved_fraction": float(total.unserved_fraction()),
        "load_max_over_mean": float(np.mean(loads)),
        "router_entropy": float(total.mean_entropy()),
    }
    numbers |= {f"{name}_loss": float(np.mean(loss)) for name, loss in layers.losses.items()}
    if len(loads) > 1:
        by_layer = {"drop_fraction": layers.drop_fraction(), "load_max_over_mean": loads}
        for name, values in by_layer.items():
            numbers[f"{name}_by_layer"] = [round(v, 4) for v in np.asarray(values).tolist()]
    return numbers


def line(numbers: dict[str, Any]) -> str:
    """The ones worth a glance, for the progress line."""
    text = (
        f"loss {numbers['train/loss']:.4f} · {numbers['train/examples_per_second']:.1f} examples/s"
        f" · {numbers['train/tokens_per_second']:.0f} tokens/s"
    )
    drops = [v for n, v in numbers.items() if n.endswith("/drop_fraction")]
    loads = [v for n, v in numbers.items() if n.endswith("/load_max_over_mean")]
    return text + (f" · {max(drops):.1%} dropped, load {max(loads):.2f}× mean" if drops else "")
