"""The configured datasets, opened: splits to train on, to validate on, to score."""

from __future__ import annotations

import dataclasses
import sys

from vimoe_jax.base.errors import UserError
from vimoe_jax.config import mixture
from vimoe_jax.config.data import Data
from vimoe_jax.config.mixture import Part
from vimoe_jax.data.mixture import Mixture
from vimoe_jax.datasets.records import Source


class NoSplit(UserError):
    """The dataset is there, but lacks the split."""


@dataclasses.dataclass(frozen=True)
class EvalSplit:
    """What is scored by itself: one split of one dataset.

    Attributes:
      part: the dataset.
      split: of it; "" for a whole JSONL file.
      name: what its folder and metrics are called.
    """

    part: Part
    split: str
    name: str


def parts(c: Data) -> tuple[Part, ...]:
    """The datasets that the configuration names."""
    return mixture.parse(c.dataset, c.style)


def open_train(c: Data) -> Mixture:
    """The training split of every part, at the parts' weights.

    Raises:
      UserError: a dataset or file does not exist or is damaged, or a part has no such split.
    """
    chosen = parts(c)
    try:
        sources = tuple(open_part(c, part, c.train_split) for part in chosen)
    except NoSplit as e:
        raise NoSplit(f"config.data.train_split: {e}") from None
    return Mixture(chosen, sources)


def open_validation(c: Data, *, quiet: bool = False) -> Mixture:
    """The validation split of the parts that have one, every record counting alike.

    `quiet` leaves out the word about parts that have none.

    Raises:
      UserError: as `open_train`; no part has the split.
    """
    found = _having(c, "val_split", c.val_split, quiet)
    return Mixture(tuple(found), tuple(found.values()), weighted=False)


def eval_splits(c: Data, entry: str, *, quiet: bool = False) -> list[EvalSplit]:
    """What one of `data.test_splits` stands for.

    `NAME/SPLIT` is that split of that dataset, trained on or not; `SPLIT` is the split of every
    part that has it. The only dataset's splits keep their own names; others are called
    `NAME_SPLIT`. `quiet` leaves out the word about parts that lack the split.

    Raises:
      UserError: no part has the split.
    """
    trained = parts(c)
    name, slash, split = entry.partition("/")
    if slash and (part := _named(name, c, trained)):
        return [EvalSplit(part, split, _call(part, split, trained))]
    if len(trained) == 1:
        return [EvalSplit(trained[0], entry, _call(trained[0], entry, trained))]
    found = _having(c, "test_splits", entry, quiet)
    return [EvalSplit(part, entry, _call(part, entry, trained)) for part in found]


def open_eval(c: Data, split: EvalSplit, *, quiet: bool = False) -> Mixture:
    """The records of a split to score.

    Raises:
      UserError: as `open_part`.
    """
    return Mixture((split.part,), (open_part(c, split.part, split.split, quiet=quiet),))


def open_part(c: Data, part: Part, split: str, *, quiet: bool = False) -> Source:
    """Opens one split of one dataset; generates ViScenes if absent.

    `quiet` keeps a JSONL file's warnings to itself.

    Raises:
      NoSplit: the dataset has others.
      UserError: the dataset or file does not exist, is damaged, or has too many bad lines.
    """
    try:
        return _open(c, part, split, quiet)
    except UserError as e:
        if split in (have := _splits(c, part)):
            raise
        if part.name == "jsonl":
            raise NoSplit(str(e)) from None
        listed = ", ".join(have)
        raise NoSplit(f"{part.label} has no split {split!r}; it has {listed}") from None


def _open(c: Data, part: Part, split: str, quiet: bool) -> Source:
    if part.name == "viscenes":
        from vimoe_jax.datasets import viscenes

        variant = part.variant or c.variant
        viscenes.prepare(c.dir, variant)
        return viscenes.open_split(c.dir, split, variant)
    if part.name == "jsonl":
        from vimoe_jax.datasets.jsonl import JsonlSource

        return JsonlSource(c.source, split or None, max_bad=c.max_skipped, quiet=quiet)
    from vimoe_jax.datasets import prepared

    return prepared.open_split(c.dir, part.name, split, *_variant(part))


def _splits(c: Data, part: Part) -> tuple[str, ...]:
    """The splits a dataset has; opening it for this may fail as opening one of them does."""
    if part.name == "viscenes":
        from vimoe_jax.datasets.viscenes.builder import SPLITS

        return tuple(SPLITS)
    if part.name == "jsonl":
        from vimoe_jax.datasets.jsonl import JsonlSource

        return tuple(JsonlSource(c.source, max_bad=c.max_skipped, quiet=True).splits)
    from vimoe_jax.datasets import prepared

    return tuple(prepared.splits(c.dir, part.name, *_variant(part)))


def _variant(part: Part) -> tuple[str, ...]:
    return (part.variant,) if part.variant else ()


def _having(c: Data, field: str, split: str, quiet: bool) -> dict[Part, Source]:
    """The parts that have a split, opened; a word about the others."""
    found, lacking = {}, []
    for part in parts(c):
        try:
            found[part] = open_part(c, part, split, quiet=True)
        except NoSplit as e:
            lacking.append(str(e))
    if not found:
        raise NoSplit(f"config.data.{field}: {'; '.join(lacking)}")
    if not quiet:
        for message in lacking:
            print(f"warning: config.data.{field}: left out: {message}", file=sys.stderr)
    return found


def _named(name: str, c: Data, trained: tuple[Part, ...]) -> Part | None:
    """The part of that name, or a dataset that is not trained on; None if there is none."""
    for part in trained:
        if name in (part.label, f"{part.name}@{part.variant}"):
            return part
    usual = ",".join(item for item in c.style.split(",") if "=" not in item)
    try:
        (part,) = mixture.parse(name, usual)
    except ValueError:
        return None
    return part


def _call(part: Part, split: str, trained: tuple[Part, ...]) -> str:
    name = split or "all"
    return name if trained == (part,) else f"{part.label}_{name}"
