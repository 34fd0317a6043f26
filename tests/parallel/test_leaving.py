"""What is left of several processes' talk when they have parted: no thread that Python's end could meet."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from parallel.processes import environments

WORKERS = "pt_gloo_runloop"
"""The system's name of the threads in which torch's gloo groups work."""
CODE = """
import sys
from mst.parallel.launch import from_environment, joined
from parallel.test_data_parallel import train_all
from parallel.test_leaving import workers
with joined(from_environment(), minutes=3):
    train_all(*sys.argv[1:])
    assert workers() == 4, workers()  # two of each group
assert workers() == 0, workers()
"""


def workers() -> int:
    """Return how many threads of this process work for torch's groups."""
    return sum(path.read_text().strip() == WORKERS for path in Path("/proc/self/task").glob("*/comm"))


def test_groups_end_with_the_training_that_they_were_for(tmp_path: Path) -> None:
    """A thread that lets go of a tensor while Python ends aborts the process (pytorch #179291)."""
    words = [sys.executable, "-c", CODE, str(tmp_path), json.dumps(["BatchNorm, accumulate 2"])]
    started = [subprocess.Popen(words, env=each, stderr=subprocess.PIPE, text=True) for each in environments(2)]
    said = [process.communicate(timeout=200)[1] for process in started]
    assert [process.returncode for process in started] == [0, 0], said
