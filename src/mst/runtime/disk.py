"""A full disk, whoever meets it while a run is at work, becomes one line that says how to go on."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager

from mst.errors import RunFailure
from mst.runtime.rundir import RunDir

FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


@contextmanager
def disk_errors(run: RunDir) -> Iterator[None]:
    """Watch the writing of a run.

    Raises:
        RunFailure: no space left.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in FULL:
            raise
        raise RunFailure(
            f"cannot write in {run.root}: {error.strerror}; the newest checkpoint is intact: free space, then go on "
            f"with {run.resume_command}"
        ) from error
