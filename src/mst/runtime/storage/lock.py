"""One process at a time in a folder: a lock file that names its holder; the system frees it when the holder dies."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from mst.errors import UsageError
from mst.runtime.storage.files import may_write

LOCK_NAME = "run.lock"
TAKEN = {errno.EACCES, errno.EAGAIN}
UNSUPPORTED = {errno.ENOLCK, errno.ENOTSUP, errno.EINVAL, errno.ENOSYS}


@contextmanager
def only_process_in(folder: Path) -> Iterator[None]:
    """Hold the lock of an existing folder inside the block; the lock file is deleted at its end.

    The lock is a POSIX record lock. The file that a killed process leaves locks nothing, and forked workers do not hold
    the lock. Two threads of one process are not kept apart. On a file system without locks there is
    none, and a process that writes nothing takes none.

    Raises:
        UsageError: another process is at work there.
        OSError: the lock file cannot be written.
    """
    if not may_write():
        yield
        return
    path = folder / LOCK_NAME
    with _locked(path) as file:
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        try:
            yield
        finally:
            path.unlink(missing_ok=True)  # before the lock is freed: who waits for this file then finds it gone


def _locked(path: Path) -> IO[str]:
    """Return the lock file, open and locked.

    While this process waits for the lock, its holder may delete the file. A lock on a deleted file keeps nobody out, so
    the file that is there now is locked instead.
    """
    while True:
        file = path.open("a+", encoding="utf-8")
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in UNSUPPORTED:
                return file
            file.close()
            if error.errno not in TAKEN:
                raise
            raise UsageError(f"{path.parent} is in use by {_holder(path)}: wait for it, or stop it") from error
        if _is_at(path, file):
            return file
        file.close()


def _is_at(path: Path, file: IO[str]) -> bool:
    """Whether an open file is the one at `path`."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _holder(path: Path) -> str:
    """Return who wrote the lock file."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip() or "another process"
    except OSError:
        return "another process"
