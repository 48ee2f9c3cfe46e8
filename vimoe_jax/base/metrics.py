"""The registry of metrics: what each name that is logged or scored means, its unit, what is better.

A score is defined where it is computed (`vimoe_jax/scores`); what training logs is defined below,
since its readers, the report among them, must not need JAX.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from typing import Literal

SHARE, COUNT = "share", "count"  # units that readers print in a way of their own


@dataclasses.dataclass(frozen=True)
class Metric:
    """A metric in words.

    Attributes:
      name: as logged, without the prefix of a split; `{part}` stands for any text.
      title: a short name; may use what stands in the name's braces.
      meaning: one sentence; likewise.
      unit: `SHARE` (a fraction, shown as per cent), `COUNT`, or a word such as "nats"; "" for a
        number without one.
      better: which direction is.
      low: no value is below; None if there is no such bound.
      high: no value is above; None if there is no such bound.
    """

    name: str
    title: str
    meaning: str
    unit: str
    better: Literal["higher", "lower", "neither"]
    low: float | None
    high: float | None

    @functools.cached_property
    def _pattern(self) -> re.Pattern[str]:
        texts = re.split(r"\{(\w+)\}", self.name)
        parts = [f"(?P<{t}>.+)" if i % 2 else re.escape(t) for i, t in enumerate(texts)]
        return re.compile("".join(parts), re.DOTALL)

    @functools.cached_property
    def _literal(self) -> int:
        """Characters of the name that stand for themselves."""
        return len(re.sub(r"\{\w+\}", "", self.name))


_defined: dict[str, Metric] = {}


def define(
    name: str,
    title: str,
    meaning: str,
    *,
    unit: str = SHARE,
    better: Literal["higher", "lower", "neither"] = "higher",
    low: float | None = 0,
    high: float | None = None,
) -> Metric:
    """Adds a metric to the registry; `Metric` explains the arguments.

    Args:
      high: 1 for a share if not given, else no bound.

    Raises:
      ValueError: the name is taken, there is no meaning, or a text uses what the name lacks.
    """
    if high is None and unit == SHARE:
        high = 1
    metric = Metric(name, title, meaning, unit, better, low, high)
    if _defined.get(name, metric) != metric:
        raise ValueError(f"{name}: a metric of that name is defined already")
    if not (title and meaning):
        raise ValueError(f"{name}: a metric needs a title and a meaning")
    known = set(re.findall(r"\{(\w+)\}", name))
    if unknown := set(re.findall(r"\{(\w+)\}", title + meaning)) - known:
        raise ValueError(f"{name}: the name has no {', '.join(sorted(unknown))}")
    _defined[name] = metric
    return metric


def find(name: str) -> Metric | None:
    """The metric of a logged name, with that name in its texts; None if there is none.

    Where several patterns fit, the most literal one counts.
    """
    if name in _defined:
        return _defined[name]
    fits = [(m, f) for m in _defined.values() if (f := m._pattern.fullmatch(name))]
    if not fits:
        return None
    metric, match = max(fits, key=lambda fit: fit[0]._literal)
    found = match.groupdict()

    def fill(text: str) -> str:
        return re.sub(r"\{(\w+)\}", lambda m: found[m[1]], text)

    title, meaning = fill(metric.title), fill(metric.meaning)
    return dataclasses.replace(metric, name=name, title=title, meaning=meaning)


def defined() -> tuple[Metric, ...]:
    """All metrics, patterns included, in the order of their definition."""
    return tuple(_defined.values())


_lower = functools.partial(define, better="lower")
_neither = functools.partial(define, better="neither")

_lower("train/loss", "Training loss", "Cross-entropy a token of the answers, in nats.", unit="nats")
_lower("val/loss", "Validation loss", "The same loss on the validation split.", unit="nats")
define(
    "train/accuracy",
    "Token accuracy",
    "Answer tokens that were the likeliest, the right ones before them given.",
)
_lower(
    "train/aux_loss",
    "Auxiliary loss",
    "Weighted losses of all MoE layers, and the distance from a parent where there is one.",
    unit="",
)
_neither("train/learning_rate", "Learning rate", "Of the parts at the peak rate.", unit="")
_neither("train/grad_norm", "Gradient norm", "Global norm before clipping.", unit="")
_lower(
    "train/skipped_steps", "Skipped updates", "Steps whose loss or gradients were bad.", unit=COUNT
)
define(
    "train/examples_per_second",
    "Pictures a second",
    "Training speed, pauses for evaluation not counted.",
    unit="per second",
)
define(
    "train/tokens_per_second",
    "Tokens a second",
    "Image patches and text tokens, without padding.",
    unit="per second",
)
_lower(
    "train/data_wait", "Data wait", "Share of training's time that went into waiting for batches."
)
define("train/goodput", "Goodput", "Share of all wall time so far that went into steps.")
_neither(
    "train/share/{dataset}",
    "Share: {dataset}",
    "Pictures of {dataset} among all since the line before.",
)
for _kind, _what in {
    "steps": "optimizer steps",
    "compile": "the first step after each start",
    "data": "waiting for the input pipeline",
    "save": "checkpoints, as far as the loop waited",
    "eval": "the validation loss",
    "start": "the time from the process' start to its first batch",
    "redone": "steps lost with a crash",
}.items():
    _neither(
        f"time/{_kind}",
        f"Seconds: {_kind}",
        f"Wall time that went into {_what}, over all resumptions.",
        unit="seconds",
    )

_MOE = "train/moe/{part}/"
_lower(
    _MOE + "drop_fraction",
    "Dropped choices",
    "Choices that found their expert full: those tokens skip it.",
)
_lower(
    _MOE + "drop_fraction_{kind}",
    "Dropped choices, {kind}",
    "Choices of {kind} tokens that found their expert full.",
)
_lower(
    _MOE + "drop_fraction_by_layer",
    "Dropped choices by layer",
    "Choices that found their expert full, one value per MoE layer, first to last.",
)
_lower(
    _MOE + "unserved_fraction",
    "Unserved tokens",
    "Tokens that no expert took: only their residual goes on.",
)
_lower(
    _MOE + "load_max_over_mean",
    "Imbalance",
    "The busiest expert's load over the mean; 1 is perfect balance.",
    unit="",
)
_lower(
    _MOE + "load_max_over_mean_by_layer",
    "Imbalance by layer",
    "The busiest expert's load over the mean, one value per MoE layer, first to last.",
    unit="",
)
_neither(
    _MOE + "router_entropy",
    "Router entropy",
    "Of a token's gates, in nats; 0 is certain, ln E undecided.",
    unit="nats",
)
_lower(
    _MOE + "importance_loss",
    "Importance loss",
    "How uneven the experts' summed gates are, unweighted; 0 is even.",
    unit="",
)
_lower(
    _MOE + "load_loss",
    "Load loss",
    "How uneven the experts' expected loads are, unweighted; 0 is even.",
    unit="",
)
_lower(
    _MOE + "balance_loss",
    "Balance loss",
    "Experts' loads times their mean gates, unweighted; 1 is perfect balance.",
    unit="",
)
_lower(
    _MOE + "z_loss",
    "Z-loss",
    "Squared log-sum-exp of the router's logits, unweighted.",
    unit="nats²",
)
