"""The file by which one process alone may work at a place: made where there is none, and never
written to.
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from replaykit.errors import RunError


@contextmanager
def locked(path: Path, *, wait: bool) -> Iterator[None]:
    """Holds the lock while the block runs. One that another process has is waited for, or is a
    BlockingIOError.

    Raises RunError for a symbolic link, which could name any file, and for what is no file.
    """
    try:
        # For reading alone, so that nothing can be changed through it.
        number = os.open(path, os.O_RDONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o644)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.EISDIR):
            raise RunError(
                f"{path}: the lock of a step is a file of its own, and this is none; remove it, or "
                "use another place with --out"
            ) from error
        raise
    try:
        fcntl.flock(number, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        yield
    finally:
        os.close(number)
