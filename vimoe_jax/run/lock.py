"""One run at a time in a workdir."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import jax

from vimoe_jax.base.errors import UserError

NAME = "lock"

_WITHOUT_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP}


@contextlib.contextmanager
def only_run(workdir: Path) -> Iterator[None]:
    """Holds the workdir while entered; the kernel lets go of it if this process dies.

    Args:
      workdir: made if it does not exist. Of several processes of one run, the first holds it.

    Raises:
      UserError: another process holds it; the message says which.
      OSError: the file system refuses.
    """
    if jax.process_index() > 0:
        yield
        return
    workdir.mkdir(parents=True, exist_ok=True)
    path = workdir / NAME
    # Not inherited by programs that this process starts: they may outlive it.
    with open(path, "a+", encoding="utf-8") as f:
        try:
            fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"{workdir}: in use by {_holder(path)}; wait for it, end it, or take another "
                "--workdir"
            ) from None
        except OSError as e:
            if e.errno not in _WITHOUT_LOCKS:
                raise
            print(
                f"warning: {path}: this file system has no locks; start one run at a time here",
                file=sys.stderr,
            )
        f.truncate(0)
        since = time.strftime("%Y-%m-%d %H:%M:%S")
        json.dump({"process": os.getpid(), "host": socket.gethostname(), "since": since}, f)
        f.flush()
        yield


def _holder(path: Path) -> str:
    """Who wrote the lock, in words."""
    try:
        held = json.loads(path.read_text(encoding="utf-8"))
        return f"process {held['process']} on {held['host']}, since {held['since']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"  # that has not written who it is yet
