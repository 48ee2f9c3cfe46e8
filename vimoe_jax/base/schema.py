"""A small engine for typed configurations: dataclasses whose fields carry meaning and checks.

A schema is a tree of frozen dataclasses whose fields are made by `field`. `defaults` gives the tree
as a locked `ml_collections.ConfigDict`, `resolve` turns such a dict back into checked dataclasses.
Every complaint is a `UserError` of one line that names the field by its dotted path.
"""

from __future__ import annotations

import ast
import dataclasses
import difflib
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any

from vimoe_jax.base.errors import UserError

Check = Callable[[Any], str | None]  # None if the value is right, else what it must be


def field(default: Any, meaning: str, *checks: Check) -> Any:
    """A dataclass field with its default, its meaning in one sentence and its checks."""
    metadata = {"meaning": meaning, "checks": checks}
    if isinstance(default, list | dict) or dataclasses.is_dataclass(default):
        return dataclasses.field(
            default_factory=lambda: (
                default if dataclasses.is_dataclass(default) else type(default)(default)
            ),
            metadata=metadata,
        )
    return dataclasses.field(default=default, metadata=metadata)


def at_least(low: float) -> Check:
    """Checks `value >= low`."""
    return lambda v: None if v >= low else f"must be at least {low}"


def more_than(low: float) -> Check:
    """Checks `value > low`."""
    return lambda v: None if v > low else f"must be more than {low}"


def between(low: float, high: float) -> Check:
    """Checks `low <= value <= high`."""
    return lambda v: None if low <= v <= high else f"must be between {low} and {high}"


def one_of(*choices: Any) -> Check:
    """Checks membership, and names the nearest right choice."""

    def check(v: Any) -> str | None:
        if v in choices:
            return None
        return f"must be one of {', '.join(map(repr, choices))}{_nearest(v, choices)}"

    return check


def _nearest(name: Any, names: typing.Iterable[Any]) -> str:
    near = difflib.get_close_matches(str(name), [str(n) for n in names], n=1, cutoff=0.5)
    return f" (did you mean {near[0]!r}?)" if near else ""


def _hints(cls: type) -> dict[str, Any]:
    return typing.get_type_hints(cls)


def defaults(cls: type) -> Any:
    """The schema's defaults as a locked `ml_collections.ConfigDict`."""
    import ml_collections

    def plain(value: Any) -> Any:
        if dataclasses.is_dataclass(value):
            return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
        return value

    # `convert_dict=True` nests ConfigDicts, so that a mistyped attribute fails where it is written.
    return ml_collections.ConfigDict(plain(cls()), type_safe=False, convert_dict=True).lock()


def to_dict(config: Any) -> dict[str, Any]:
    """A resolved configuration as nested plain dicts, ready for JSON."""
    return dataclasses.asdict(config)


def resolve(cls: type, values: Mapping[str, Any], path: str = "") -> Any:
    """Builds the dataclass `cls` from nested mappings; anything not given takes its default.

    Raises:
      UserError: an unknown field (with the nearest right name), a wrong type, a failed check.
    """
    fields = {f.name: f for f in dataclasses.fields(cls)}
    hints = _hints(cls)
    for name in values:
        if name not in fields:
            raise UserError(f"config.{path}{name}: no such field{_nearest(name, fields)}")
    kwargs = {}
    for name, f in fields.items():
        if name not in values:
            continue
        where = f"{path}{name}"
        if dataclasses.is_dataclass(hints[name]):
            if not isinstance(values[name], Mapping):
                raise UserError(f"config.{where}: a group of fields, not {values[name]!r}")
            kwargs[name] = resolve(hints[name], values[name], f"{where}.")
            continue
        value = _coerce(values[name], hints[name], where)
        for check in f.metadata["checks"]:
            if complaint := check(value):
                raise UserError(f"config.{where}: {complaint}, not {value!r}")
        kwargs[name] = value
    return cls(**kwargs)


def _type_name(hint: Any) -> str:
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return " or ".join(_type_name(a) for a in typing.get_args(hint))
    return hint.__name__ if isinstance(hint, type) and not typing.get_args(hint) else str(hint)


def _coerce(value: Any, hint: Any, where: str) -> Any:
    """Returns `value` as the hinted type; an int is a fine float, a list a fine tuple."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        for option in typing.get_args(hint):
            try:
                return _coerce(value, option, where)
            except UserError:
                continue
    elif typing.get_origin(hint) is tuple and isinstance(value, list | tuple):
        return tuple(_coerce(v, typing.get_args(hint)[0], where) for v in value)
    elif typing.get_origin(hint) is dict and isinstance(value, Mapping):
        _, item = typing.get_args(hint)
        return {str(k): _coerce(v, item, f"{where}.{k}") for k, v in value.items()}
    elif isinstance(hint, type):
        if hint is float and isinstance(value, int) and not isinstance(value, bool):
            return float(value)
        if isinstance(value, hint) and not (isinstance(value, bool) and hint is not bool):
            return value
    raise UserError(f"config.{where}: must be {_type_name(hint)}, not {value!r}")


def check_name(cls: type, name: str) -> None:
    """Checks that a dotted name is a field of the schema, or of a dictionary in it.

    Raises:
      UserError: it is none; the message names the nearest.
    """
    group: Any = cls
    done = ""
    for word in name.split("."):
        if not dataclasses.is_dataclass(group):
            if typing.get_origin(group) is dict:
                return
            raise UserError(f"--config.{name}: {done[:-1]} has no fields of its own")
        hints = _hints(typing.cast(type, group))
        if word not in hints:
            raise UserError(f"--config.{name}: no field {done}{word}{_nearest(word, hints)}")
        group = hints[word]
        done += f"{word}."


def apply_override(config: Any, name: str, text: str) -> None:
    """Sets one dotted field of a ConfigDict from the command line's text.

    The text is read as a Python literal (`3`, `1e-3`, `True`, `(0, 2)`); anything else is a string.
    """
    *groups, leaf = name.split(".")
    node, done = config, ""
    for group in groups:
        if group not in node:
            raise UserError(f"--config.{name}: no field {done}{group}{_nearest(group, node)}")
        node = node[group]
        done += f"{group}."
        if not hasattr(node, "keys"):
            raise UserError(f"--config.{name}: {done[:-1]} has no fields of its own")
    if leaf not in node:
        raise UserError(f"--config.{name}: no field {done}{leaf}{_nearest(leaf, node)}")
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        value = {"true": True, "false": False}.get(text.lower(), text)
    with node.unlocked():
        node[leaf] = value
