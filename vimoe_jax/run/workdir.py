"""From a configuration and a workdir to everything the loop and the evaluation run with."""

from __future__ import annotations

import dataclasses
import functools
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh as DeviceMesh

from vimoe_jax import config as config_lib
from vimoe_jax.base import host, schema
from vimoe_jax.base.errors import UserError
from vimoe_jax.base.files import write_json
from vimoe_jax.config import Config
from vimoe_jax.config.mesh import Mesh
from vimoe_jax.data import prompts, sources
from vimoe_jax.data.mixture import Mixture
from vimoe_jax.datasets import OUTSIDE
from vimoe_jax.datasets.records import questions
from vimoe_jax.model.blueprint import Blueprint, vocabulary
from vimoe_jax.parallel import compilation, distributed
from vimoe_jax.parallel import mesh as mesh_lib
from vimoe_jax.run.mesh import for_run
from vimoe_jax.text import tokenizers as tokenizer_lib
from vimoe_jax.text.tokenizers import Tokenizer
from vimoe_jax.text.tokenizers.sentencepiece import train_sentencepiece


@dataclasses.dataclass(frozen=True)
class Run:
    """What a run has and never changes."""

    config: Config
    workdir: Path
    tokenizer: Tokenizer
    blueprint: Blueprint
    mesh: DeviceMesh

    @functools.cached_property
    def train_source(self) -> Mixture:
        """The training data, opened when first used."""
        return sources.open_train(self.config.data)


def start_run(c: Config, workdir: Path) -> Run:
    """Makes or reopens a workdir: `config.json`, `tokenizer.model` or `tokenizer.json`.

    Of several processes the first makes it, and the data that are drawn rather than prepared.

    Raises:
      UserError: the workdir holds a run of another model, or cannot be written.
    """
    saved = workdir / "config.json"
    with distributed.lead_first("the workdir and the data"):
        workdir.mkdir(parents=True, exist_ok=True)
        if distributed.is_lead() and saved.exists():
            _check_same_model(config_lib.from_json(saved), c, saved)
        _check_splits(c)
        if distributed.is_lead():
            write_json(saved, schema.to_dict(c))
        elif not saved.exists():
            raise UserError(f"--workdir: {workdir} must be one folder that all processes share")
        tokenizer = _tokenizer(c, workdir)
    return _run(c, workdir, tokenizer)


def reopen(workdir: Path, overrides: Sequence[tuple[str, str]], *, one_device: bool = False) -> Run:
    """The run of an existing workdir, with some fields changed, on whatever devices there are.

    The mesh is all data parallel, whatever the run was trained on, unless an override says
    otherwise; `one_device` takes the first device only.

    Raises:
      UserError: not a workdir of a run, or an override that does not fit.
    """
    import ml_collections

    saved = config_lib.from_json(workdir / "config.json")
    values = ml_collections.ConfigDict({**schema.to_dict(saved), "mesh": schema.to_dict(Mesh())})
    for name, text in overrides:
        schema.apply_override(values, name, text)
    c = config_lib.resolve(values.to_dict())
    tokenizer = tokenizer_lib.load(workdir)
    return _run(c, workdir, tokenizer, jax.devices()[:1] if one_device else None)


def _run(c: Config, workdir: Path, tokenizer: Tokenizer, devices: list[Any] | None = None) -> Run:
    compilation.keep_compiled()
    vocab_size = vocabulary(c.model, tokenizer.vocab_size)
    if vocab_size < tokenizer.vocab_size:
        raise UserError(
            f"config.model.decoder.vocab_size: {vocab_size} is less than the tokenizer's "
            f"{tokenizer.vocab_size}"
        )
    blueprint = Blueprint.create(c.model, vocab_size)
    mesh = for_run(c, blueprint, devices)
    if mesh.devices.flat[0].platform == "cpu":
        host.keep_memory()
    if mesh.size > 1 and jax.process_index() == 0:
        print(f"mesh: {mesh_lib.describe(mesh)}")
    return Run(c, workdir, tokenizer, blueprint, mesh)


def _check_splits(c: Config) -> None:
    """Opens what evaluation will need: a missing split is found before training, not after it."""
    if c.eval.every and c.data.val_split:
        try:
            sources.open_validation(c.data)
        except UserError as e:
            raise _named("val_split", e) from None
    for entry in c.data.test_splits if c.eval.at_end else ():
        try:
            for split in sources.eval_splits(c.data, entry):
                sources.open_eval(c.data, split, quiet=True)
        except UserError as e:
            raise _named("test_splits", e) from None


def _named(field: str, error: UserError) -> UserError:
    """The error, with the field that it is about."""
    message = str(error)
    if message.startswith("config."):
        return UserError(message)
    # A class of another package that gives no source is wrong whatever the split.
    if re.match(f"{OUTSIDE.pattern}: ", message):
        field = "dataset"
    return UserError(f"config.data.{field}: {message}")


def _tokenizer(c: Config, workdir: Path) -> Tokenizer:
    """The workdir's own, else the configured one, else one trained on the training texts."""
    if not tokenizer_lib.saved_in(workdir):
        if c.data.tokenizer:
            tokenizer_lib.load(c.data.tokenizer).save(workdir)
        else:
            texts = _texts(sources.open_train(c.data))
            try:
                tokenizer = train_sentencepiece(texts, c.data.vocab_size)
            except UserError as e:
                raise UserError(f"config.data.{e}") from None
            tokenizer.save(workdir)
    return tokenizer_lib.load(workdir)


def _texts(source: Mixture) -> Iterator[str]:
    """All that a tokenizer should know: prompts, each once, and answers."""
    seen = set()
    for part, records in source.by_component():
        for qa in questions(records):
            for text in prompts.all_prompts(qa, part.style):
                if text not in seen:
                    seen.add(text)
                    yield text
            yield from prompts.all_targets(qa, part.style)


def _check_same_model(old: Config, new: Config, path: Path) -> None:
    before, after = (_flat(schema.to_dict(c.model)) for c in (old, new))
    changed = [n for n in after if before.get(n) != after[n] and not n.endswith(_FREE)]
    if changed:
        name = changed[0]
        raise UserError(
            f"config.model.{name}: {after[name]!r}, but {path} is of a run with {before[name]!r}; "
            "another model needs another --workdir"
        )


# What may change within one run: nothing that decides a parameter's shape or meaning.
_FREE = (
    "dtype", "attention", "remat", "unroll", "dispatcher", "_weight", "capacity_factor",
    "group_size", "noise_std", "eval_experts_per_token", "batch_priority", "renormalize",
    "exchange_factor",
)  # fmt: skip


def _flat(values: dict[str, Any], path: str = "") -> dict[str, Any]:
    flat = {}
    for name, value in values.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{path}{name}.")
        else:
            flat[path + name] = value
    return flat


def device_name() -> str:
    """What the run ran on, in words."""
    device = jax.devices()[0]
    kind = device.device_kind if device.platform != "cpu" else f"CPU, {os.cpu_count()} cores"
    return f"{jax.device_count()} × {kind}" if jax.device_count() > 1 else kind
