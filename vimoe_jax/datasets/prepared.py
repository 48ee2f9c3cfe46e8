"""Prepared datasets on disk: written whole or not at all, read as a `Source`."""

from __future__ import annotations

import contextlib
import fcntl
import io
import json
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from vimoe_jax.base.errors import UserError
from vimoe_jax.datasets.records import QA, Record

_ABANDONED = 3600.0  # seconds without a change, after which an unfinished folder is abandoned
_LOCKED = "incomplete.locked_"  # such a folder is somebody's as long as it is locked


def folder(data_dir: str | Path, name: str, variant: str = "") -> Path:
    """Where a dataset lies, or would lie; "" is its first variant, here as everywhere.

    Raises:
      UserError: it has no such variant.
    """
    version = _builder_class(name).VERSION
    return Path(data_dir) / name / _config(name, variant).name / str(version)


def _config(name: str, variant: str) -> Any:
    configs = {c.name: c for c in _builder_class(name).BUILDER_CONFIGS}
    if variant and variant not in configs:
        raise UserError(f"{name} has no variant {variant!r}; it has {', '.join(configs)}")
    return configs[variant or next(iter(configs))]


def open_builder(data_dir: str | Path, name: str, variant: str = "") -> Any:
    """The TFDS builder of a dataset, prepared or not.

    Raises:
      UserError: no such variant, or what is there cannot be read.
    """
    where = folder(data_dir, name, variant)
    try:
        return _builder_class(name)(data_dir=str(data_dir), config=_config(name, variant).name)
    except Exception:  # broken JSON, missing files, …
        if where.exists():
            raise UserError(f"{where}: damaged; remove the folder, prepare") from None
        raise


def write(
    data_dir: str | Path,
    name: str,
    variant: str = "",
    *,
    prime: Callable[[Any], None] | None = None,
    replace: bool = False,
) -> None:
    """Prepares a dataset under `data_dir` if it is not there.

    It is written into a folder of its own and renamed when whole, so that a run that was cut short
    leaves nothing that could be taken for the dataset, and several processes may try at once.

    Args:
      data_dir: where all datasets lie.
      name: the dataset.
      variant: which of its variants.
      prime: gets the builder before it starts.
      replace: write it even if it is there; the old one stays until the new one is whole.

    Raises:
      UserError: no such variant, or the folder cannot be written.
    """
    where = folder(data_dir, name, variant)
    if where.exists() and not replace:
        return
    import tensorflow_datasets as tfds

    tfds.disable_progress_bar()
    remove_unfinished(data_dir, name, variant)
    try:
        with _staging(where) as root:
            builder = open_builder(root, name, variant)
            if prime:
                prime(builder)
            with contextlib.redirect_stdout(io.StringIO()):  # TFDS announces a download
                builder.download_and_prepare(
                    file_format="array_record", download_dir=str(root / "downloads")
                )
            _publish(root, Path(builder.data_dir), where, replace)
    except Exception as e:
        if where.exists() and not replace:  # another process was first
            return
        if isinstance(e, OSError):
            raise UserError(f"{e.filename or data_dir}: {e.strerror or e}") from None
        if type(e) is RuntimeError:  # how the ArrayRecord writer says that the disk is full
            raise UserError(f"{data_dir}: {' '.join(str(e).split())}") from None
        raise


def _publish(root: Path, made: Path, where: Path, replace: bool) -> None:
    """Moves a whole dataset to its place."""
    # TFDS notes the default variant beside the variants.
    note = where.parent.parent / ".config"
    if not note.exists():
        with contextlib.suppress(OSError):  # another process may be first
            os.rename(root / note.parent.name / ".config", note)
    if replace and where.exists():
        os.rename(where, root / "replaced")
    os.rename(made, where)


@contextlib.contextmanager
def _staging(where: Path) -> Iterator[Path]:
    """A locked folder beside a dataset's; the lock ends with the process, however it ends."""
    where.parent.mkdir(parents=True, exist_ok=True)
    suffix = f"_{where.name}"
    made = tempfile.mkdtemp(prefix="new_incomplete.", suffix=suffix, dir=where.parent)
    handle = os.open(made, os.O_RDONLY)
    root = where.parent / Path(made).name.replace("new_incomplete.", _LOCKED)
    try:
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(handle, fcntl.LOCK_EX)
        os.rename(made, root)  # only now may others take it for a leftover
        yield root
    finally:
        shutil.rmtree(root, ignore_errors=True)
        shutil.rmtree(made, ignore_errors=True)
        os.close(handle)


def remove_unfinished(data_dir: str | Path, name: str, variant: str = "") -> None:
    """Removes what killed runs left behind, nothing that another process works on."""
    where = folder(data_dir, name, variant)
    for path in where.parent.glob(f"*incomplete*{where.name}*"):
        with contextlib.suppress(OSError):
            if path.name.startswith(_LOCKED):
                nobodys = not _is_locked(path)
            else:
                nobodys = time.time() - path.stat().st_mtime > _ABANDONED
            if nobodys:
                shutil.rmtree(path)


def _is_locked(path: Path) -> bool:
    handle = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(handle)
    return False


def splits(data_dir: str | Path, name: str, variant: str = "") -> list[str]:
    """The splits of a prepared dataset.

    Raises:
      UserError: no such variant, not prepared, or damaged.
    """
    return list(_prepared(data_dir, name, variant).info.splits)


def fingerprint(data_dir: str | Path, name: str, variant: str = "") -> str | None:
    """What the builder noted of its contents; None where nothing whole is prepared."""
    try:
        builder = _prepared(data_dir, name, variant)
        for split in builder.info.splits:
            open_split(data_dir, name, split, variant)
        return builder.info.metadata["fingerprint"]
    except (UserError, KeyError, TypeError):
        return None


def open_split(data_dir: str | Path, name: str, split: str, variant: str = "") -> TfdsSource:
    """One split, in the order of writing.

    Raises:
      UserError: no such variant, not prepared, no such split, or damaged files.
    """
    builder = _prepared(data_dir, name, variant)
    if split not in builder.info.splits:
        raise UserError(f"{name} has no split {split!r}; it has {', '.join(builder.info.splits)}")
    source = TfdsSource(str(data_dir), name, split, variant)
    try:
        whole = len(source) == builder.info.splits[split].num_examples
        whole = whole and bool(source[len(source) - 1].qa)
    except Exception:  # the readers raise what they like on a file cut short
        whole = False
    if not whole:
        raise UserError(f"{builder.data_dir}: split {split} is damaged; remove the folder, prepare")
    return source


def _prepared(data_dir: str | Path, name: str, variant: str) -> Any:
    where = folder(data_dir, name, variant)
    if not where.exists():
        raise UserError(
            f"{where}: not prepared; run python -m vimoe_jax.data.prepare "
            f"--dataset={name} {_options(name, variant)}--data_dir={data_dir}"
        )
    builder = open_builder(data_dir, name, variant)
    if not builder.info.splits:
        raise UserError(f"{where}: damaged; remove the folder, prepare")
    return builder


def _options(name: str, variant: str) -> str:
    """The options of the command that prepares a variant."""
    config, usual = _config(name, variant), _config(name, "")
    if name == "viscenes":
        return f"--variant={config.name} " if config != usual else ""
    options = "--source=DIR "
    options += f"--variant={config.variant} " if config.variant != usual.variant else ""
    return options + ("" if config.pictures else "--annotations_only ")


class TfdsSource:
    """Records of a prepared split; a copy sent to another process opens the files there."""

    def __init__(self, data_dir: str, name: str, split: str, variant: str):
        self._args = (data_dir, name, split, variant)
        self._data: Any = None

    def __reduce__(self):
        return TfdsSource, self._args

    def _open(self) -> Any:
        if self._data is None:
            import tensorflow_datasets as tfds

            data_dir, name, split, variant = self._args
            builder = open_builder(data_dir, name, variant)
            skip = tfds.decode.SkipDecoding()
            decoders = {"image": skip} if "image" in builder.info.features else None
            self._data = builder.as_data_source(split=split, decoders=decoders)
        return self._data

    def __len__(self) -> int:
        return len(self._open())

    def __getitem__(self, index: int) -> Record:
        if not 0 <= index < len(self):  # ends plain iteration
            raise IndexError(index)
        row = self._open()[int(index)]
        pictures = (bytes(row["image"]),) if "image" in row else ()
        return Record(_text(row["id"]), pictures, tuple(_questions(row["qa"])))

    def questions(self) -> Iterator[QA]:
        """All questions, without reading pictures where the questions lie beside them."""
        data_dir, name, split, variant = self._args
        beside = folder(data_dir, name, variant) / f"questions-{split}.jsonl"
        if not beside.exists():
            for record in self:
                yield from record.qa
            return
        with open(beside, "rb") as file:
            for number, line in enumerate(file, 1):
                try:
                    yield _question(json.loads(line))
                except (ValueError, KeyError, TypeError):
                    raise UserError(f"{beside}:{number}: damaged; prepare anew") from None


def _questions(qa: dict[str, Any]) -> Iterator[QA]:
    names = [n for n in ("id", "task", "question", "answers", "type", "explanations") if n in qa]
    for values in zip(*(qa[name] for name in names), strict=True):
        row = dict(zip(names, map(_text, values), strict=True))
        lines = {n: row[n].split("\n") if row.get(n) else () for n in ("answers", "explanations")}
        yield _question(row | lines)


def _question(row: dict[str, Any]) -> QA:
    name, task, question = (row[key] for key in ("id", "task", "question"))
    return QA(name, task, question, tuple(row["answers"]), row["type"], tuple(row["explanations"]))


def _text(value: Any) -> str:
    return value.decode("utf-8") if isinstance(value, bytes) else str(value)


def _builder_class(name: str) -> Any:
    # TFDS asks Google Cloud Storage for prepared copies unless this is switched off.
    os.environ.setdefault("NO_GCE_CHECK", "true")
    absl = logging.getLogger("absl")
    absl.setLevel(max(absl.level, logging.ERROR))
    if name == "viscenes":
        from vimoe_jax.datasets.viscenes.builder import ViScenes

        return ViScenes
    from vimoe_jax.datasets.preparing.builder import BUILDERS
    from vimoe_jax.datasets.published import get

    return BUILDERS[get(name).name]
