"""What is left of several processes' talk when they have parted: no thread that could come back while Python ends."""

from __future__ import annotations

import atexit
import json
import os
from pathlib import Path

from parallel.processes import run_in_processes
from parallel.test_data_parallel import train_all

WORKERS = "pt_gloo_runloop"
"""The system's name of the threads in which torch's gloo groups work."""


def workers() -> int:
    """Return how many threads of this process work for torch's groups."""
    return sum(path.read_text().strip() == WORKERS for path in Path("/proc/self/task").glob("*/comm"))


def train_and_count(folder: str, cases: str) -> None:
    """Train; when Python is about to end, end with the number of threads that are left."""
    train_all(folder, cases)
    assert workers() == 4, "two of each group"
    atexit.register(lambda: os._exit(workers()))


def test_groups_end_with_the_training_that_they_were_for(tmp_path: Path) -> None:
    """A thread that lets go of a tensor while Python ends aborts the process (pytorch #179291)."""
    cases = json.dumps(["BatchNorm, accumulate 2"])
    run_in_processes("parallel.test_leaving:train_and_count", 2, str(tmp_path), cases)
