"""ViScenes, the embedded dataset: drawn from a seed, so that the main job runs anywhere."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vimoe_jax.data.records import QA, Record
from vimoe_jax.errors import UserError

_ABANDONED = 3600.0  # seconds without a change, after which an unfinished folder is nobody's


def prepare(data_dir: str | Path, config: str = "default", *, progress: bool = True) -> None:
    """Generates the dataset under `data_dir` if it is not there.

    It is drawn into a folder of its own and renamed when whole, so that a run that was cut short
    leaves nothing that could be taken for the dataset, and several processes may try at once.

    Raises:
      UserError: no such configuration, or the folder cannot be written.
    """
    builder = _builder(data_dir, config)
    folder = Path(builder.data_dir)
    if folder.exists():
        return
    import tensorflow_datasets as tfds

    if progress:
        from vimoe_jax.progress import Ticker

        sizes = builder.builder_config
        total = sizes.train + sizes.validation + sizes.test + sizes.test_compositional
        ticker = Ticker(f"drawing ViScenes into {data_dir}", total)
        builder.on_example = ticker.tick
    tfds.disable_progress_bar()
    _remove_unfinished(folder)
    try:
        # TFDS announces a download, and wants a folder for it.
        with contextlib.redirect_stdout(io.StringIO()), tempfile.TemporaryDirectory() as downloads:
            builder.download_and_prepare(file_format="array_record", download_dir=downloads)
    except Exception as e:
        if folder.exists():  # another process was first
            return
        if isinstance(e, OSError):
            raise UserError(f"{e.filename or data_dir}: {e.strerror or e}") from None
        if type(e) is RuntimeError:  # how the ArrayRecord writer says that the disk is full
            raise UserError(f"{data_dir}: {e}") from None
        raise


def _remove_unfinished(folder: Path) -> None:
    """Removes what killed runs left behind; younger leftovers may be another process at work."""
    for path in folder.parent.glob(f"*incomplete*{folder.name}*"):
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime > _ABANDONED:
                shutil.rmtree(path)


def open_split(data_dir: str | Path, split: str, config: str = "default") -> TfdsSource:
    """One split, in the order of generation.

    Raises:
      UserError: no such configuration, not prepared, no such split, or damaged files.
    """
    builder = _builder(data_dir, config)
    if not Path(builder.data_dir).exists():
        raise UserError(
            f"{builder.data_dir}: not prepared; run python -m vimoe_jax.data.prepare "
            f"--dataset=viscenes --data_dir={data_dir}"
            + (f" --variant={config}" if config != "default" else "")
        )
    if split not in builder.info.splits:
        raise UserError(f"viscenes has no split {split!r}; it has {', '.join(builder.info.splits)}")
    source = TfdsSource(str(data_dir), split, config)
    try:
        whole = len(source) == builder.info.splits[split].num_examples
        whole = whole and bool(source[len(source) - 1].image)
    except Exception:  # the readers raise what they like on a file cut short
        whole = False
    if not whole:
        raise UserError(f"{builder.data_dir}: split {split} is damaged; remove the folder, prepare")
    return source


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
        if not 0 <= index < len(self):  # ends plain iteration
            raise IndexError(index)
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
    absl = logging.getLogger("absl")
    absl.setLevel(max(absl.level, logging.ERROR))
    from vimoe_jax.data.datasets.viscenes.builder import CONFIGS, ViScenes

    if config not in (names := [c.name for c in CONFIGS]):
        raise UserError(f"viscenes has no variant {config!r}; it has {', '.join(names)}")
    return ViScenes(data_dir=str(data_dir), config=config)
