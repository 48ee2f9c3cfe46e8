"""A trained model, ready to answer: from a workdir, or from an exported folder."""

from __future__ import annotations

import contextlib
import io
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vimoe_jax.answer.answerer import Answerer
from vimoe_jax.base.errors import UserError
from vimoe_jax.base.files import read_object
from vimoe_jax.hf.load import load as load_sources
from vimoe_jax.hf.processor import ASKING_FILE
from vimoe_jax.run.checkpoint import load_params
from vimoe_jax.run.workdir import reopen


def load(
    path: str | os.PathLike[str],
    *,
    step: int | None = None,
    config: Mapping[str, Any] | None = None,
    one_device: bool = True,
) -> Answerer:
    """Opens a trained model.

    Args:
      path: a run's workdir; or a folder of Hugging Face files (what `vimoe_jax.hf.export` writes,
        another LLaVA of a SigLIP tower and a Qwen3, Qwen3-MoE or Llama decoder).
      step: which checkpoint of a workdir; the best one if not given.
      config: fields to change, by dotted name: `{"eval.max_new_tokens": 64}`.
      one_device: use the first device only; else all of them, each for its share of a batch.

    Returns:
      Something to ask: `.answer(picture, question)`, `.caption(picture)`.

    Raises:
      UserError: neither of the two; or what is there cannot be read.
    """
    folder = Path(path)
    overrides = _overrides(config or {})
    if (folder / "checkpoints").is_dir():
        run = reopen(folder, overrides, one_device=one_device)
        return Answerer(run, load_params(run, step))
    if not (folder / "config.json").is_file():
        raise UserError(f"{folder}: neither a run's workdir nor a folder of Hugging Face files")
    if step is not None:
        raise UserError(f"{folder}: step {step}: only workdirs have steps")
    with tempfile.TemporaryDirectory() as temporary:
        workdir = Path(temporary) / "run"
        said = io.StringIO()
        with contextlib.redirect_stderr(said):
            asked = read_object(folder / ASKING_FILE, optional=True)
            load_sources([folder], workdir, [*_overrides(asked), *overrides])
        run = reopen(workdir, [], one_device=one_device)
        return Answerer(run, load_params(run))


def _overrides(values: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Fields and their values as a command line has them."""
    return [(name, repr(value)) for name, value in values.items()]
