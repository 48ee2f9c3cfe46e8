"""What the report's metrics mean, in plain words: the registry's (`vimoe_jax.base.metrics`)."""

from __future__ import annotations

import dataclasses

from vimoe_jax.base import metrics
from vimoe_jax.base.metrics import Metric
from vimoe_jax.scores import vqa  # noqa: F401 (defines its metrics)
from vimoe_jax.scores.captions import describe
from vimoe_jax.text.normalize import PLAIN


def scoring(label: dict[str, str]) -> str:
    """How a split's texts were compared, from what its `metrics.json` says."""
    name = label.get("profile", "plain")
    comparison = label.get("comparison", str(PLAIN))
    tokens = label.get("tokens", describe("syllable"))
    return f"Answers are compared under the profile “{name}” ({comparison}), captions as {tokens}."


ARROWS = {"higher": "↑", "lower": "↓", "neither": ""}  # which direction is better
KINDS = ("image", "question", "answer")  # of token


def meaning(name: str) -> Metric:
    """Of a metric without `eval` prefix; unknown ones get their own name back."""
    known = metrics.find(name)
    if name.startswith("train/moe/") and name.count("/") >= 3:
        part, _, kind = name.removeprefix("train/moe/").rpartition("/")
        known = moe_meaning(kind)
        title = known.title[:1].lower() + known.title[1:]
        return dataclasses.replace(known, title=f"MoE {part}: {title}")
    return known or _unknown(name, name, "")


def moe_meaning(kind: str) -> Metric:
    """Of what MoE layers report, by its name's last part."""
    title = kind.replace("_", " ").capitalize()
    known = metrics.find(f"train/moe/layers/{kind}")
    return known or _unknown(kind, title, "Mean over the layers, unweighted.")


def _unknown(name: str, title: str, text: str) -> Metric:
    """What another version of this package, or somebody else's code, logged."""
    return Metric(name, title, text, unit="", better="neither", low=None, high=None)
