"""Errors that a user can repair, and the one way commands end on them."""

from __future__ import annotations

import contextlib
import errno
import sys
from collections.abc import Iterator

# What a user can repair; any other OSError is a fault of ours and keeps its traceback.
_REFUSALS = {
    errno.EACCES, errno.EDQUOT, errno.EIO, errno.EISDIR, errno.ENOSPC, errno.ENOTDIR, errno.EPERM,
    errno.EROFS,
}  # fmt: skip


class UserError(Exception):
    """Bad input: the message is one line naming the field, file and line at fault."""


@contextlib.contextmanager
def exit_on_user_error() -> Iterator[None]:
    """Turns a `UserError`, or what the file system refuses, into one line and exit code 2."""
    try:
        yield
    except UserError as e:
        message = str(e)
    except OSError as e:
        if e.errno not in _REFUSALS:
            raise
        message = f"{e.filename}: {e.strerror}" if e.filename else str(e.strerror)
    else:
        return
    print(f"error: {' '.join(message.split())}", file=sys.stderr, flush=True)
    raise SystemExit(2)
