"""Ending the process although it has threads that Python's end must not meet.

One may hang in a read that never returns (a dead network mount); torch's threads of several processes may hold tensors.
"""

from __future__ import annotations

import os
import sys
from contextlib import suppress

_left = False


def leave_behind() -> None:
    """Note that there are such threads: at a normal exit the interpreter would wait for them, or abort."""
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
