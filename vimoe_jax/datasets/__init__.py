"""Records on disk (published, drawn or your own) and how they are prepared."""

from __future__ import annotations

import importlib
import inspect
import os
import re
from typing import TYPE_CHECKING, Any

from vimoe_jax.base.errors import UserError
from vimoe_jax.datasets.published import NAMES, get

if TYPE_CHECKING:
    from vimoe_jax.datasets.records import Source

__all__ = ["NAMES", "OUTSIDE", "get", "open", "splits"]

# A class or function of another package, MODULE:NAME.
OUTSIDE = re.compile(r"[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")


def open(
    name: str,
    split: str = "train",
    *,
    data_dir: str | os.PathLike[str] = "data",
    source: str | os.PathLike[str] = "",
    variant: str = "",
    max_bad: int = 0,
    quiet: bool = False,
) -> Source:
    """The records of one split: `len(records)`, `records[i].qa`, `records[i].pictures`.

    Args:
      name: a published dataset that `vimoe_jax.data.prepare` has prepared; "viscenes", which is
        drawn into `data_dir` if it is not there; "jsonl"; or "my_package.my_module:Source", which
        is called as `Source(split, data_dir)`.
      split: one of the dataset's; of a JSONL file, "" for all lines.
      data_dir: where prepared datasets lie.
      source: the JSONL file.
      variant: "" for the dataset's first.
      max_bad: bad lines of a JSONL file that are left out before it counts as broken.
      quiet: keep a JSONL file's warnings back.

    Raises:
      UserError: no such dataset, variant or split; not prepared; damaged; not importable.
    """
    if OUTSIDE.fullmatch(name):
        return _call_outside(name, split, os.fspath(data_dir))
    data_dir = os.fspath(data_dir)
    if name == "viscenes":
        from vimoe_jax.datasets import viscenes

        viscenes.prepare(data_dir, variant or "default")
        return viscenes.open_split(data_dir, split, variant or "default")
    if name == "jsonl":
        from vimoe_jax.datasets.jsonl import JsonlSource

        return JsonlSource(os.fspath(source), split or None, max_bad=max_bad, quiet=quiet)
    from vimoe_jax.datasets import prepared

    get(name)
    return prepared.open_split(data_dir, name, split, variant)


def splits(
    name: str,
    *,
    data_dir: str | os.PathLike[str] = "data",
    source: str | os.PathLike[str] = "",
    variant: str = "",
    max_bad: int = 0,
) -> tuple[str, ...]:
    """The splits that a dataset has; () where a class of another package does not say.

    Raises:
      UserError: as `open`.
    """
    if OUTSIDE.fullmatch(name):
        return tuple(getattr(_import_outside(name), "SPLITS", None) or ())
    if name == "viscenes":
        from vimoe_jax.datasets.viscenes.builder import SPLITS

        return tuple(SPLITS)
    if name == "jsonl":
        from vimoe_jax.datasets.jsonl import JsonlSource

        return tuple(JsonlSource(os.fspath(source), max_bad=max_bad, quiet=True).splits)
    from vimoe_jax.datasets import prepared

    get(name)
    return tuple(prepared.splits(os.fspath(data_dir), name, variant))


def _import_outside(name: str) -> Any:
    module, _, attribute = name.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, SyntaxError) as e:
        raise UserError(f"{name}: cannot be imported: {e}") from None
    except AttributeError:
        raise UserError(f"{name}: {module} has no {attribute!r}") from None


def _call_outside(name: str, split: str, data_dir: str) -> Source:
    from vimoe_jax.datasets.records import BadRecord, Record

    make = _import_outside(name)
    have = getattr(make, "SPLITS", None)
    if have is not None and split not in have:
        raise UserError(f"{name} has no split {split!r}; it has {', '.join(have)}")
    try:
        inspect.signature(make).bind(split, data_dir)
    except (TypeError, ValueError) as e:  # the latter: a built-in without a signature
        raise UserError(f"{name}: cannot be called with (split, data_dir): {e}") from None
    try:
        source = make(split, data_dir)
    except (KeyError, ValueError, OSError) as e:
        raise UserError(f"{name}: split {split!r}: {e}") from None
    for method in ("__len__", "__getitem__"):
        if not hasattr(source, method):
            raise UserError(f"{name}: what it gives has no {method}; a source needs one")
    try:
        first = source[0] if len(source) else None
    except BadRecord:
        first = None  # is counted where records are read
    if first is not None and not isinstance(first, Record):
        want, kind = f"{Record.__module__}.Record", type(first).__name__
        raise UserError(f"{name}: its records must be {want}, not {kind}")
    return source
