"""Every field of the configuration: its default, its meaning, its check.

A config file in `configs/` has one function, `get_config()`, that starts from `defaults()` and sets
what differs. `load` reads such a file, applies `--config.FIELD=VALUE` overrides and gives the
checked, frozen `Config` that everything else takes.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import runpy
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from vimoe_jax.base import schema
from vimoe_jax.base.errors import UserError
from vimoe_jax.base.schema import at_least, checked, field
from vimoe_jax.config import mixture
from vimoe_jax.config.data import Data
from vimoe_jax.config.evaluate import Eval
from vimoe_jax.config.mesh import Mesh
from vimoe_jax.config.model import Connector, Decoder, Model, Vision
from vimoe_jax.config.parts import parts_of
from vimoe_jax.config.train import Checkpoint, Distill, Optim, Train

__all__ = [
    "Checkpoint", "Config", "Connector", "Data", "Decoder", "Distill", "Eval", "Mesh", "Model",
    "Optim", "Train", "Vision", "defaults", "describe", "from_json", "load", "resolve",
]  # fmt: skip
from vimoe_jax.moe.options import complaints


@checked
class Config:
    """Everything a run depends on."""

    seed: int = field(0, "Of initialisation, shuffling and router noise.", at_least(0))
    model: Model = field(Model(), "Image and tokens to logits.")
    data: Data = field(Data(), "What is read, and how it becomes rows.")
    optim: Optim = field(Optim(), "The optimizer.")
    train: Train = field(Train(), "The loop.")
    checkpoint: Checkpoint = field(Checkpoint(), "What is saved when.")
    eval: Eval = field(Eval(), "Scores.")
    mesh: Mesh = field(Mesh(), "Devices.")


def defaults() -> Any:
    """A locked `ml_collections.ConfigDict` of all fields, for config files to start from."""
    return schema.defaults(Config)


def load(path: str | os.PathLike[str], overrides: Sequence[tuple[str, str]] = ()) -> Config:
    """Reads a config file, applies (dotted field, text) overrides, checks everything.

    Raises:
      UserError: one line that names the field, or the file and line.
    """
    if not Path(path).is_file():
        raise UserError(f"--config: no such file: {path}")
    try:
        config = runpy.run_path(str(path))["get_config"]()
    except UserError:
        raise
    except KeyError as e:
        if e.args == ("get_config",):
            raise UserError(f"{path}: has no function get_config()") from None
        raise UserError(f"{_where(path, e)}: {_unknown_field(e)}") from None
    except SyntaxError as e:
        raise UserError(f"{path}:{e.lineno}: {e.msg}") from None
    except Exception as e:
        raise UserError(f"{_where(path, e)}: {_unknown_field(e)}") from None
    for name, text in overrides:
        schema.apply_override(config, name, text)
    return resolve(config.to_dict())


def _where(path: str | os.PathLike[str], error: Exception) -> str:
    """`file:line` of the config file's own frame in a traceback."""
    lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == str(path)]
    return f"{path}:{lines[-1]}" if lines else str(path)


def _unknown_field(error: Exception) -> str:
    """The error's message; ml_collections' page about an unknown key becomes a short line."""
    text = str(error.args[0]) if error.args else type(error).__name__
    if key := re.search(r'Key "(\w+)" does not exist', text):
        near = re.search(r'Did you mean "(\w+)"', text)
        return f"no field {key[1]!r}" + (f" (did you mean {near[1]!r}?)" if near else "")
    return text


def from_json(path: Path) -> Config:
    """The configuration that a run saved in its workdir.

    Raises:
      UserError: the file is missing or broken.
    """
    try:
        return resolve(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; is this the workdir of a run?") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as e:
        raise UserError(f"{path}: not a configuration: {e}") from None


def resolve(values: dict[str, Any]) -> Config:
    """Nested dicts to a `Config`, with the checks that involve several fields.

    Raises:
      UserError: one line that names the field.
    """
    config = schema.resolve(Config, values)
    for complaint in _complaints(config):
        raise UserError(f"config.{complaint}")
    return config


def _complaints(c: Config) -> Iterator[str]:
    m, v, d = c.model, c.model.vision, c.model.decoder
    if m.image_size % m.patch_size:
        yield (
            f"model.image_size: {m.image_size} is no multiple of model.patch_size = {m.patch_size}"
        )
    if v.width % v.num_heads:
        yield f"model.vision.num_heads: {v.num_heads} does not divide width = {v.width}"
    if d.num_heads % d.num_kv_heads:
        yield (
            f"model.decoder.num_kv_heads: {d.num_kv_heads} does not divide "
            f"num_heads = {d.num_heads}"
        )
    if d.head_dim % 2:
        yield f"model.decoder.head_dim: must be even, not {d.head_dim}"
    for part in parts_of(m).values():
        for complaint in complaints(part.moe, part.depth, part.mlp_dim, causal=part.causal):
            yield f"model.{part.name}.moe.{complaint}"
    if c.train.batch_size % c.train.accumulate:
        yield (
            f"train.accumulate: {c.train.accumulate} does not divide "
            f"train.batch_size = {c.train.batch_size}"
        )
    yield from _data_complaints(c.data)
    if not c.data.max_pictures:
        for part in ("vision", "connector"):
            if rate := getattr(c.optim, f"{part}_rate"):
                yield (
                    f"optim.{part}_rate: {rate}, but no picture reaches the {part} with "
                    "data.max_pictures = 0; set it to 0"
                )
    if not max(c.optim.vision_rate, c.optim.connector_rate, c.optim.decoder_rate):
        yield "optim.decoder_rate: every part is frozen (all rates are 0); nothing would be trained"


def _data_complaints(c: Data) -> Iterator[str]:
    try:
        names = {part.name for part in mixture.parse(c.dataset, c.style)}
    except ValueError as e:
        yield f"data.{e}"
        return
    names |= {split.partition("/")[0] for split in c.test_splits if "/" in split}
    if "jsonl" in names and not c.source:
        yield "data.source: dataset 'jsonl' needs the path of a JSONL file"


def describe(cls: type = Config, path: str = "") -> Iterator[str]:
    """One line a field, for `--help`: name, default, meaning."""
    for f in dataclasses.fields(cls):
        default = getattr(cls(), f.name)
        if dataclasses.is_dataclass(default):
            yield from describe(type(default), f"{path}{f.name}.")
        else:
            yield f"  {path + f.name} = {default!r}\n      {f.metadata['meaning']}"
