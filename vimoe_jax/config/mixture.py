"""Which datasets a run reads, at which rates, in which style of prompts.

    vivqa:2,uit_viic,viocrvqa:0.5

A weight is the relative rate at which pictures of that dataset are drawn, whatever its size; 1
where none is given. Above, four of seven pictures are ViVQA's.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Sequence

from vimoe_jax import datasets
from vimoe_jax.text.wordings import STYLES

PLAIN = "plain"  # the style of prompts where none is asked for


@dataclasses.dataclass(frozen=True)
class Component:
    """One dataset of a mixture.

    Attributes:
      name: of the dataset.
      variant: of the dataset; "" for its usual one.
      weight: the relative rate at which its pictures are drawn.
      style: of its prompts (`vimoe_jax.text.wordings.STYLES`).
    """

    name: str
    variant: str = ""
    weight: float = 1.0
    style: str = PLAIN

    @property
    def label(self) -> str:
        """What folders, metrics and messages call it."""
        name = self.name.replace(":", "_").replace(".", "_")
        return f"{name}_{self.variant}" if self.variant else name


def known_names() -> tuple[str, ...]:
    """Everything that can be a component."""
    return ("viscenes", "jsonl", *datasets.NAMES)


def parse(dataset: str, style: str = "") -> tuple[Component, ...]:
    """Reads `config.data.dataset` and `config.data.style`.

    Args:
      dataset: `NAME[@VARIANT][:WEIGHT]`, several separated by commas; or
        `my_package.my_module:Source[:WEIGHT]`, a class of another package (`datasets.open`).
      style: a style for all components, `COMPONENT=STYLE` for one, or both, separated by commas.

    Raises:
      ValueError: what is wrong, beginning with the field's name.
    """
    try:
        components = tuple(_component(text.strip()) for text in dataset.split(","))
        labels = [p.label for p in components]
        if twice := [label for label in labels if labels.count(label) > 1]:
            raise ValueError(f"{twice[0]!r} is named twice")
    except ValueError as e:
        raise ValueError(f"dataset: {e}") from None
    try:
        usual, own = _styles(style, labels)
    except ValueError as e:
        raise ValueError(f"style: {e}") from None
    return tuple(dataclasses.replace(p, style=own.get(p.label, usual)) for p in components)


def _component(text: str) -> Component:
    outside = datasets.OUTSIDE.match(text)
    if outside and text.partition(":")[0] not in known_names():
        spelled = name = outside[0]
        variant, rest = "", text[outside.end() :]
        if rest and not rest.startswith(":"):
            raise ValueError(f"{text!r}: after MODULE:NAME comes a weight, :WEIGHT, or nothing")
        colon, weight = rest[:1], rest[1:]
    else:
        spelled, colon, weight = text.partition(":")
        name, at, variant = spelled.strip().partition("@")
        _check(name, known_names())
        if at and not variant:
            raise ValueError(f"{text!r} names no variant after '@'")
    try:
        value = float(weight) if colon else 1.0
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise ValueError(f"the weight of {spelled!r} must be a positive number, not {weight!r}")
    return Component(name, variant, value)


def _styles(text: str, labels: Sequence[str]) -> tuple[str, dict[str, str]]:
    """The style of all components, and of those that have their own."""
    usual, own = [], {}
    for item in filter(None, map(str.strip, text.split(","))):
        label, equals, style = map(str.strip, item.rpartition("="))
        _check(style, tuple(STYLES))
        if not equals:
            usual.append(style)
            continue
        label = label.replace("@", "_")
        _check(label, labels)
        own[label] = style
    if len(usual) > 1:
        raise ValueError(f"one style for all components, not both {usual[0]!r} and {usual[1]!r}")
    return (usual or [PLAIN])[0], own


def _check(name: str, names: Sequence[str]) -> None:
    if name not in names:
        near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        raise ValueError(f"{name!r} is none of {', '.join(names)}{hint}")
