"""Ending the process at once, where a thread of it would keep Python from ending well.

It may hang in a read that never returns (a dead network mount), or come back from a library while Python ends.
"""

from __future__ import annotations

import os
import sys
from contextlib import suppress

_left = False


def leave_behind() -> None:
    """Note that there is such a thread: at a normal exit the interpreter would wait for it, or abort."""
    global _left  # noqa: PLW0603  (it is the process's)
    _left = True


def end_process(status: int) -> None:
    """End the process at once if a thread was left behind, else do nothing."""
    if not _left:
        return
    for stream in (sys.stdout, sys.stderr):
        with suppress(Exception):
            stream.flush()
    os._exit(status)
