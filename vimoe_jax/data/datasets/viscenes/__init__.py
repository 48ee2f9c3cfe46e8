"""ViScenes, the embedded dataset: drawn from a seed, so that the main job runs anywhere."""

from __future__ import annotations

import contextlib
import io
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vimoe_jax.data.records import QA, Record
from vimoe_jax.errors import UserError


def prepare(data_dir: str | Path, config: str = "default", *, progress: bool = True) -> None:
    """Generates the dataset under `data_dir` if it is not there; a half-written one is redone."""
    builder = _builder(data_dir, config)
    if Path(builder.data_dir).exists():
        return
    import tensorflow_datasets as tfds

    if progress:
        from vimoe_jax.progress import Ticker

        sizes = builder.builder_config
        total = sizes.train + sizes.validation + sizes.test + sizes.test_compositional
        ticker = Ticker(f"drawing ViScenes into {data_dir}", total)
        builder.on_example = ticker.tick
    tfds.disable_progress_bar()
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # TFDS announces a download
            builder.download_and_prepare(file_format="array_record")
    except OSError as e:
        raise UserError(f"{e.filename or data_dir}: {e.strerror}") from None


def open_split(data_dir: str | Path, split: str, config: str = "default") -> TfdsSource:
    """One split, in the order of generation.

    Raises:
      UserError: not prepared, or no such split.
    """
    builder = _builder(data_dir, config)
    if not Path(builder.data_dir).exists():
        raise UserError(
            f"{builder.data_dir}: not prepared; run python -m vimoe_jax.data.prepare "
            f"--dataset=viscenes --data_dir={data_dir}"
        )
    if split not in builder.info.splits:
        raise UserError(f"viscenes has no split {split!r}; it has {', '.join(builder.info.splits)}")
    return TfdsSource(str(data_dir), split, config)


class TfdsSource:
    """Records of a prepared split; a copy sent to another process opens the files there."""

    def __init__(self, data_dir: str, split: str, config: str):
        self._args = (data_dir, split, config)
        self._data: Any = None

    def __reduce__(self):
        return TfdsSource, self._args

    def _open(self) -> Any:
        if self._data is None:
            import tensorflow_datasets as tfds

            data_dir, split, config = self._args
            self._data = _builder(data_dir, config).as_data_source(
                split=split, decoders={"image": tfds.decode.SkipDecoding()}
            )
        return self._data

    def __len__(self) -> int:
        return len(self._open())

    def __getitem__(self, index: int) -> Record:
        row = self._open()[int(index)]
        return Record(_text(row["id"]), bytes(row["image"]), tuple(_questions(row["qa"])))


def _questions(qa: dict[str, Any]) -> Iterator[QA]:
    columns = [qa[name] for name in ("id", "task", "question", "answers", "type")]
    for values in zip(*columns, strict=True):
        name, task, question, answers, question_type = map(_text, values)
        yield QA(name, task, question, tuple(answers.split("\n")), question_type)


def _text(value: Any) -> str:
    return value.decode("utf-8") if isinstance(value, bytes) else str(value)


def _builder(data_dir: str | Path, config: str) -> Any:
    # TFDS asks Google Cloud Storage for prepared copies unless told not to.
    os.environ.setdefault("NO_GCE_CHECK", "true")
    logging.getLogger("absl").setLevel(logging.ERROR)
    from tensorflow_datasets.core.utils import gcs_utils

    gcs_utils._is_gcs_disabled = True
    from vimoe_jax.data.datasets.viscenes.builder import ViScenes

    return ViScenes(data_dir=str(data_dir), config=config)
