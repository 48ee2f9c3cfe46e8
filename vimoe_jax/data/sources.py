"""The configured datasets, opened: splits to train on, to validate on, to score."""

from __future__ import annotations

import dataclasses
import sys
from typing import Any

from vimoe_jax import datasets
from vimoe_jax.base.errors import UserError
from vimoe_jax.config import mixture
from vimoe_jax.config.data import Data
from vimoe_jax.config.mixture import Component
from vimoe_jax.data.mixture import Mixture
from vimoe_jax.datasets.records import Source


class NoSplit(UserError):
    """The dataset is there, but lacks the split."""


@dataclasses.dataclass(frozen=True)
class EvalSplit:
    """What is scored by itself: one split of one dataset.

    Attributes:
      component: the dataset.
      split: of it; "" for a whole JSONL file.
      name: what its folder and metrics are called.
    """

    component: Component
    split: str
    name: str


def components(c: Data) -> tuple[Component, ...]:
    """The datasets that the configuration names."""
    return mixture.parse(c.dataset, c.style)


def open_train(c: Data) -> Mixture:
    """The training split of every component, at the components' weights.

    Raises:
      UserError: a dataset or file does not exist or is damaged, or a component has no such split.
    """
    chosen = components(c)
    try:
        sources = tuple(open_component(c, component, c.train_split) for component in chosen)
    except NoSplit as e:
        raise NoSplit(f"config.data.train_split: {e}") from None
    return Mixture(chosen, sources)


def open_validation(c: Data, *, quiet: bool = False) -> Mixture:
    """The validation split of the components that have one, every record counting alike.

    `quiet` leaves out the word about components that have none.

    Raises:
      UserError: as `open_train`; no component has the split.
    """
    found = _having(c, "val_split", c.val_split, quiet)
    return Mixture(tuple(found), tuple(found.values()), weighted=False)


def eval_splits(c: Data, entry: str, *, quiet: bool = False) -> list[EvalSplit]:
    """What one of `data.test_splits` stands for.

    `NAME/SPLIT` is that split of that dataset, trained on or not; `SPLIT` is the split of every
    component that has it. The only dataset's splits keep their own names; others are called
    `NAME_SPLIT`. `quiet` leaves out the word about components that lack the split.

    Raises:
      UserError: no component has the split.
    """
    trained = components(c)
    name, slash, split = entry.partition("/")
    if slash and (component := _named(name, c, trained)):
        return [EvalSplit(component, split, _call(component, split, trained))]
    if len(trained) == 1:
        return [EvalSplit(trained[0], entry, _call(trained[0], entry, trained))]
    found = _having(c, "test_splits", entry, quiet)
    return [EvalSplit(component, entry, _call(component, entry, trained)) for component in found]


def open_eval(c: Data, split: EvalSplit, *, quiet: bool = False) -> Mixture:
    """The records of a split to score.

    Raises:
      UserError: as `open_component`.
    """
    return Mixture(
        (split.component,), (open_component(c, split.component, split.split, quiet=quiet),)
    )


def open_component(c: Data, component: Component, split: str, *, quiet: bool = False) -> Source:
    """Opens one split of one dataset; generates ViScenes if absent.

    `quiet` keeps a JSONL file's warnings to itself.

    Raises:
      NoSplit: the dataset has others.
      UserError: the dataset or file does not exist, is damaged, or has too many bad lines.
    """
    try:
        return datasets.open(component.name, split, **_place(c, component), quiet=quiet)
    except UserError as e:
        if split in (have := datasets.splits(component.name, **_place(c, component))):
            raise
        if component.name == "jsonl":
            raise NoSplit(str(e)) from None
        if not have:  # a class that lists no splits: its own words are all there is
            raise
        listed = ", ".join(have)
        raise NoSplit(f"{component.label} has no split {split!r}; it has {listed}") from None


def _place(c: Data, component: Component) -> dict[str, Any]:
    """Where a dataset lies, as `datasets.open` takes it."""
    variant = component.variant or (c.variant if component.name == "viscenes" else "")
    return dict(data_dir=c.dir, source=c.source, variant=variant, max_bad=c.max_skipped)


def _having(c: Data, field: str, split: str, quiet: bool) -> dict[Component, Source]:
    """The components that have a split, opened; a word about the others."""
    found, lacking = {}, []
    for component in components(c):
        try:
            found[component] = open_component(c, component, split, quiet=True)
        except NoSplit as e:
            lacking.append(str(e))
    if not found:
        raise NoSplit(f"config.data.{field}: {'; '.join(lacking)}")
    if not quiet:
        for message in lacking:
            print(f"warning: config.data.{field}: left out: {message}", file=sys.stderr)
    return found


def _named(name: str, c: Data, trained: tuple[Component, ...]) -> Component | None:
    """The component of that name, or a dataset that is not trained on; None if there is none."""
    for component in trained:
        if name in (component.label, f"{component.name}@{component.variant}"):
            return component
    usual = ",".join(item for item in c.style.split(",") if "=" not in item)
    try:
        (component,) = mixture.parse(name, usual)
    except ValueError:
        return None
    return component


def _call(component: Component, split: str, trained: tuple[Component, ...]) -> str:
    name = split or "all"
    return name if trained == (component,) else f"{component.label}_{name}"
