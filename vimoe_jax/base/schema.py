"""A small engine for typed configurations: dataclasses whose fields carry meaning and checks.

A schema is a tree of `checked` dataclasses whose fields are made by `field`. `defaults` gives the
tree as a locked `ml_collections.ConfigDict`, `resolve` turns such a dict back into dataclasses.
Every complaint is one line that names the field, in a configuration by its dotted path.
"""

from __future__ import annotations

import ast
import dataclasses
import difflib
import functools
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from vimoe_jax.base.errors import UserError

T = TypeVar("T")
Check = Callable[[Any], str | None]  # None if the value is right, else what it must be


class FieldError(UserError, ValueError):
    """A field has a wrong value, or does not exist.

    A `UserError` for commands, a `ValueError` for Python that makes a schema's object itself.

    Args:
      owner: what has the field: a class by its name, a part of a configuration by its path.
      complaint: the field's name and what is wrong with it, "name: must be …".
    """

    def __init__(self, owner: str, complaint: str):
        super().__init__(owner, complaint)
        self.owner, self.complaint = owner, complaint

    def __str__(self) -> str:
        return f"{self.owner}.{self.complaint}"


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
        return f"must be one of {', '.join(map(repr, choices))}{nearest(v, choices)}"

    return check


def nearest(name: Any, names: typing.Iterable[Any]) -> str:
    """A question that ends a complaint, " (did you mean …?)"; "" if no name is near."""
    near = difflib.get_close_matches(str(name), [str(n) for n in names], n=1, cutoff=0.5)
    return f" (did you mean {near[0]!r}?)" if near else ""


@typing.dataclass_transform(frozen_default=True)
def checked(cls: type[T]) -> type[T]:
    """Class decorator: a frozen dataclass that checks the fields of each object that is made.

    Values become what `resolve` makes of them: an int a float, a list a tuple, where the field is
    one. A method `conflicts()`, if there is one, yields complaints about fields together, each
    beginning with a field's name; it runs when all fields are right by themselves.

    Making an object raises `FieldError` on an unknown field (with the nearest right name), a wrong
    type, a failed check, a conflict.
    """
    made: Any = dataclasses.dataclass(frozen=True)(cls)
    make, fields = made.__init__, dataclasses.fields(made)

    @functools.wraps(make)
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        _refuse_unknown(cls, kwargs, cls.__name__)
        make(self, *args, **kwargs)
        for f in fields:
            value = _check(getattr(self, f.name), f, _hints(cls)[f.name], cls.__name__)
            object.__setattr__(self, f.name, value)
        for complaint in getattr(self, "conflicts", tuple)():
            raise FieldError(cls.__name__, complaint)

    cls.__init__ = __init__
    return cls


def _refuse_unknown(cls: type, names: typing.Iterable[str], owner: str) -> None:
    known = [f.name for f in dataclasses.fields(cls)]
    for name in names:
        if name not in known:
            raise FieldError(owner, f"{name}: no such field{nearest(name, known)}")


def _check(value: Any, f: dataclasses.Field, hint: Any, owner: str) -> Any:
    """The value as its field's type, if it is right."""
    value = _coerce(value, hint, owner, f.name)
    for check in f.metadata["checks"]:
        if complaint := check(value):
            raise FieldError(owner, f"{f.name}: {complaint}, not {value!r}")
    return value


@functools.cache
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


def resolve(cls: type[T], values: Mapping[str, Any], path: str = "config") -> T:
    """Builds the `checked` class `cls` from nested mappings; fields not given take their defaults.

    Args:
      cls: of the object.
      values: by field.
      path: of the object, for complaints.

    Raises:
      FieldError: as when the object is made, with the field's path.
    """
    hints, kwargs = _hints(cls), dict(values)
    _refuse_unknown(cls, values, path)
    for name in [n for n in hints if n in kwargs and dataclasses.is_dataclass(hints[n])]:
        if not isinstance(values[name], Mapping):
            raise FieldError(path, f"{name}: a group of fields, not {values[name]!r}")
        kwargs[name] = resolve(hints[name], values[name], f"{path}.{name}")
    try:
        return cls(**kwargs)
    except FieldError as e:
        raise FieldError(path, e.complaint) from None


def _type_name(hint: Any) -> str:
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return " or ".join(_type_name(a) for a in typing.get_args(hint))
    return hint.__name__ if isinstance(hint, type) and not typing.get_args(hint) else str(hint)


def _coerce(value: Any, hint: Any, owner: str, name: str) -> Any:
    """Returns `value` as the hinted type; an int is a fine float, a list a fine tuple."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        for option in typing.get_args(hint):
            try:
                return _coerce(value, option, owner, name)
            except FieldError:
                continue
    elif typing.get_origin(hint) is tuple and isinstance(value, list | tuple):
        return tuple(_coerce(v, typing.get_args(hint)[0], owner, name) for v in value)
    elif typing.get_origin(hint) is dict and isinstance(value, Mapping):
        _, item = typing.get_args(hint)
        return {str(k): _coerce(v, item, owner, f"{name}.{k}") for k, v in value.items()}
    elif isinstance(hint, type):
        if hint is float and isinstance(value, int) and not isinstance(value, bool):
            return float(value)
        if isinstance(value, hint) and not (isinstance(value, bool) and hint is not bool):
            return value
    raise FieldError(owner, f"{name}: must be {_type_name(hint)}, not {value!r}")


def check_name(cls: type, name: str) -> None:
    """Checks that a dotted name is a field of the schema, or of a dictionary in it.

    Raises:
      UserError: it is none; the message names the nearest.
    """
    group: Any = cls
    done = ""
    for word in name.split("."):
        if not (isinstance(group, type) and dataclasses.is_dataclass(group)):
            if typing.get_origin(group) is dict:
                return
            raise UserError(f"--config.{name}: {done[:-1]} has no fields of its own")
        hints = _hints(typing.cast(type, group))
        if word not in hints:
            raise UserError(f"--config.{name}: no field {done}{word}{nearest(word, hints)}")
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
            raise UserError(f"--config.{name}: no field {done}{group}{nearest(group, node)}")
        node = node[group]
        done += f"{group}."
        if not hasattr(node, "keys"):
            raise UserError(f"--config.{name}: {done[:-1]} has no fields of its own")
    if leaf not in node:
        raise UserError(f"--config.{name}: no field {done}{leaf}{nearest(leaf, node)}")
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        value = {"true": True, "false": False}.get(text.lower(), text)
    with node.unlocked():
        node[leaf] = value
