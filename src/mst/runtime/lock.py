"""One process at a time in a run folder: a lock file that names its holder and that the system frees when it dies."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mst.errors import UsageError

LOCK_NAME = "run.lock"
TAKEN = {errno.EACCES, errno.EAGAIN}
UNSUPPORTED = {errno.ENOLCK, errno.ENOTSUP, errno.EINVAL, errno.ENOSYS}


@contextmanager
def only_process_in(folder: Path) -> Iterator[None]:
    """Hold the lock of an existing folder inside the block; the lock file is deleted at its end.

    The lock is a POSIX record lock: a killed process leaves a file, which locks nothing, and forked workers do not
    hold it. It does not keep two threads of one process apart. A file system without locks is used without one.

    Raises:
        UsageError: another process is at work there.
        OSError: the lock file cannot be written.
    """
    path = folder / LOCK_NAME
    with path.open("a+", encoding="utf-8") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in TAKEN:
                raise UsageError(f"{folder} is in use by {_holder(path)}: wait for it, or stop it") from error
            if error.errno not in UNSUPPORTED:
                raise
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def _holder(path: Path) -> str:
    """Return who wrote the lock file."""
    return path.read_text(encoding="utf-8").strip() or "another process"
