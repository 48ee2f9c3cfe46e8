"""The configured dataset, opened: one split as a `Source`."""

from __future__ import annotations

from collections.abc import Iterable

from vimoe_jax.config import Data
from vimoe_jax.data.records import QA, Source


def open_source(c: Data, split: str, *, quiet: bool = False) -> Source:
    """Opens one split of the dataset that the configuration names; generates ViScenes if absent.

    `quiet` keeps a JSONL file's warnings to itself.

    Raises:
      UserError: the dataset, split or file does not exist, or has more bad lines than allowed.
    """
    if c.dataset == "viscenes":
        from vimoe_jax.data.datasets import viscenes

        viscenes.prepare(c.dir, c.variant)
        return viscenes.open_split(c.dir, split, c.variant)
    from vimoe_jax.data.jsonl import JsonlSource

    return JsonlSource(c.source, split or None, max_bad=c.max_skipped, quiet=quiet)


def questions(source: Source) -> Iterable[QA]:
    """All questions of a source, without opening pictures where the source allows that."""
    read = getattr(source, "questions", None)
    if read is not None:
        yield from read()
        return
    for i in range(len(source)):
        yield from source[i].qa
