"""Files and folders written whole or not at all, and JSON that others wrote.

What is written goes to a hidden name beside the last one, `.NAME.<16 hex digits>.tmp`, and takes
its place when it is whole. An error, a full disk or Ctrl-C removes the hidden name; what a killed
process left is removed by the next write of the same NAME. A lock tells it from one in use.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, Literal

from vimoe_jax.base.errors import UserError

_LONGEST = 48  # characters of NAME in the hidden one: file systems bound a name to 255 bytes


@contextlib.contextmanager
def replacing(
    path: str | Path,
    mode: Literal["w", "wb"] = "w",
    *,
    errors: str = "strict",
    fsync: bool = False,
) -> Iterator[IO[Any]]:
    """A file to write into, which takes the place of `path` when the block ends without an error.

    Until then `path` is as it was. The new file has the permissions of the old one. A symbolic link
    stays, and what it points to is replaced. What is no ordinary file (`/dev/stdout`) is written to
    directly.

    Args:
      path: the file; its folder must exist.
      mode: "w" for text in UTF-8, "wb" for bytes.
      errors: what happens to characters that UTF-8 does not have, as `open` takes it.
      fsync: wait until the file and its name are on the disk, so that a power cut cannot lose them.

    Raises:
      UserError: the file system refuses; one line that names `path`.
    """
    options: dict[str, Any] = {} if mode == "wb" else {"encoding": "utf-8", "errors": errors}
    with contextlib.ExitStack() as stack:
        real = Path(os.path.realpath(path))
        refusals = stack.enter_context(_Refusals(path, real))
        old = _status(path)
        if old and stat.S_ISDIR(old.st_mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        if old and not stat.S_ISREG(old.st_mode):
            yield stack.enter_context(open(path, mode, **options))
            return
        refusals.hidden = made = stack.enter_context(_hidden(real))
        with open(made, mode, **options) as file:
            if old:
                with contextlib.suppress(OSError):  # a file system without permissions
                    os.chmod(made, stat.S_IMODE(old.st_mode))
            yield file
            if fsync:
                file.flush()
                os.fsync(file.fileno())
        os.replace(made, real)
        if fsync:
            _fsync_folder(real.parent)


def write_text(path: str | Path, text: str, *, errors: str = "strict", fsync: bool = False) -> None:
    """Writes a text in UTF-8, as `replacing` does."""
    with replacing(path, errors=errors, fsync=fsync) as file:
        file.write(text)


def write_bytes(path: str | Path, data: bytes, *, fsync: bool = False) -> None:
    """Writes bytes, as `replacing` does."""
    with replacing(path, "wb", fsync=fsync) as file:
        file.write(data)


def json_text(value: Any) -> str:
    """Readable JSON with the end of its last line."""
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"


def write_json(path: str | Path, value: Any) -> None:
    """Writes readable JSON, as `replacing` does."""
    # Half a surrogate pair has no UTF-8: it is written as the escape that JSON has for it.
    write_text(path, json_text(value), errors="backslashreplace")


@contextlib.contextmanager
def new_folder(path: str | Path) -> Iterator[Path]:
    """A folder to write into, which becomes `path` when the block ends without an error.

    Args:
      path: the folder; must not exist, or be empty. Folders above it are made.

    Raises:
      UserError: `path` is in use, or the file system refuses; one line that names `path`.
    """
    real = Path(os.path.realpath(path))
    with contextlib.ExitStack() as stack:
        refusals = stack.enter_context(_Refusals(path, real))
        if real.exists() and (not real.is_dir() or any(real.iterdir())):
            raise UserError(f"{path}: exists and is not an empty folder")
        real.parent.mkdir(parents=True, exist_ok=True)
        refusals.hidden = made = stack.enter_context(_hidden(real, folder=True))
        yield made
        os.replace(made, real)  # also in place of an empty folder


def read_object(path: Path, *, optional: bool = False) -> dict[str, Any]:
    """A file's JSON object; {} for an optional file that is not there.

    Raises:
      UserError: it is missing, broken or no object.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as e:
        if optional and isinstance(e, FileNotFoundError):
            return {}
        raise UserError(f"{path}: {e.strerror}") from None
    except (ValueError, RecursionError) as e:
        raise UserError(f"{path}: not JSON: {e}") from None
    if not isinstance(value, dict):
        raise UserError(f"{path}: not a JSON object")
    return value


class _Refusals:
    """Turns the file system's errors into one line that names the last path, not the hidden one.

    What names another file, or is no error of the file system, is not about this path and passes.
    """

    def __init__(self, path: str | Path, real: Path):
        self._path, self._real = path, real
        self.hidden: Path | None = None

    def __enter__(self) -> _Refusals:
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, UserError) and self.hidden and str(self.hidden) in str(error):
            raise UserError(str(error).replace(str(self.hidden), str(self._path))) from None
        if isinstance(error, OSError) and error.errno is not None:
            shown = self._path if error.filename is None else self._shown(error.filename)
            if shown is not None:
                raise UserError(f"{shown}: cannot write: {error.strerror}") from None

    def _shown(self, filename: Any) -> str | Path | None:
        """The last name of what an error names; None for another file."""
        if not isinstance(filename, str | Path):
            return None
        named = Path(filename)
        if self.hidden and named.is_relative_to(self.hidden):
            return Path(self._path) / named.relative_to(self.hidden)
        ours = named in (Path(self._path), self._real, *self._real.parents)
        return self._path if ours else None


@contextlib.contextmanager
def _hidden(real: Path, *, folder: bool = False) -> Iterator[Path]:
    """A new name beside `real`, locked as long as it is in use; nothing of it is left."""
    _remove_leftovers(real)
    while True:
        made = real.with_name(f".{real.name[:_LONGEST]}.{secrets.token_hex(8)}.tmp")
        with contextlib.ExitStack() as stack:
            stack.callback(_remove, made)
            try:
                made.mkdir() if folder else made.touch(exist_ok=False)
            except OSError as e:
                e.filename = str(real)
                raise
            try:
                handle = os.open(made, os.O_RDONLY)
            except FileNotFoundError:  # another process took it for a leftover
                continue
            stack.callback(os.close, handle)
            if _lock(handle) and made.exists():
                yield made
                return


def _remove_leftovers(real: Path) -> None:
    """Removes hidden names of `real` that no process holds."""
    name = re.compile(re.escape(f".{real.name[:_LONGEST]}.") + r"[0-9a-f]{16}\.tmp")
    with contextlib.suppress(OSError):
        for path in [real.with_name(n) for n in os.listdir(real.parent) if name.fullmatch(n)]:
            with contextlib.suppress(OSError):
                handle = os.open(path, os.O_RDONLY)
                try:
                    # A process that has just made it, and finds it locked or gone, makes another.
                    if _lock(handle, unknown=False):
                        _remove(path)
                finally:
                    os.close(handle)


def _lock(handle: int, *, unknown: bool = True) -> bool:
    """Whether nobody else holds the lock; `unknown` on a file system without locks."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return unknown
    return True


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)


def _status(path: str | Path) -> os.stat_result | None:
    try:
        return os.stat(path)
    except FileNotFoundError:
        return None


def _fsync_folder(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # a file system whose folders have nothing to sync
            os.fsync(handle)
    finally:
        os.close(handle)
