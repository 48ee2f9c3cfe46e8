"""Whether pictures can be read: each is decoded once, however often a job is restarted."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO

from vimoe_jax.base.errors import UserError
from vimoe_jax.base.progress import Ticker
from vimoe_jax.datasets import images
from vimoe_jax.datasets.records import BadRecord


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What opening a picture showed.

    Attributes:
      digest: SHA-256 of the file, "" where it cannot be opened.
      error: why it cannot be read, "" where it can.
    """

    digest: str
    error: str = ""


class Checker:
    """Decodes pictures on all cores, as training would.

    Args:
      journal: a file that verdicts are appended to as they are found, and taken from while the
        picture's size and time of change are the same. Without one nothing is kept.
      progress: show it on stderr.

    Attributes:
      decoded: how many pictures were opened, not known from the journal.
    """

    def __init__(self, journal: Path | None = None, *, progress: bool = True):
        self.decoded = 0
        self._journal, self._progress = journal, progress

    def __call__(self, paths: Sequence[Path]) -> dict[Path, Verdict]:
        """The verdict on each picture.

        Raises:
          UserError: the journal cannot be written.
        """
        stats = {path: _stat(path) for path in paths}
        if self._journal is None:
            return self._check(list(stats), stats, None)
        try:
            known = _load(self._journal)
            verdicts = {p: known[s] for p, s in stats.items() if s in known}
            if todo := [p for p in stats if p not in verdicts]:
                self._journal.parent.mkdir(parents=True, exist_ok=True)
                with open(self._journal, "a", encoding="utf-8") as journal:
                    verdicts |= self._check(todo, stats, journal)
        except OSError as e:
            raise UserError(f"{e.filename or self._journal}: {e.strerror or e}") from None
        return verdicts

    def _check(
        self, paths: list[Path], stats: dict[Path, tuple], journal: IO[str] | None
    ) -> dict[Path, Verdict]:
        ticker = Ticker("checking pictures", len(paths)) if self._progress else None
        verdicts: dict[Path, Verdict] = {}
        # Threads, since Pillow decodes and hashlib hashes without Python's lock.
        pool = ThreadPoolExecutor(os.cpu_count())
        try:
            for path, verdict in zip(paths, pool.map(check, paths), strict=True):
                verdicts[path] = verdict
                self.decoded += 1
                if journal is not None:
                    row = [*stats[path], verdict.digest, verdict.error]
                    journal.write(json.dumps(row) + "\n")
                    journal.flush()
                if ticker:
                    ticker.tick()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
        return verdicts


def check(path: Path) -> Verdict:
    """Reads and decodes one picture."""
    try:
        data = path.read_bytes()
    except OSError as e:
        return Verdict("", str(e.strerror))
    digest = hashlib.sha256(data).hexdigest()
    try:
        images.decode(data, 8, name=path.name)
    except BadRecord as e:
        return Verdict(digest, str(e).removeprefix(f"{path.name}: "))
    return Verdict(digest)


def _stat(path: Path) -> tuple[str, int, int]:
    """What a picture is recognised by."""
    name = os.path.abspath(path)
    try:
        found = os.stat(name)
    except OSError:
        return name, -1, -1
    return name, found.st_size, found.st_mtime_ns


def _load(journal: Path) -> dict[tuple, Verdict]:
    """Verdicts by what pictures are recognised by; a line that a kill left torn is cut off."""
    if not journal.exists():
        return {}
    data = journal.read_bytes()
    whole = data[: data.rfind(b"\n") + 1]
    if whole != data:
        os.truncate(journal, len(whole))
    known = {}
    for line in whole.splitlines():
        with contextlib.suppress(ValueError, TypeError):
            name, size, changed, digest, error = json.loads(line)
            known[name, size, changed] = Verdict(digest, error)
    return known
