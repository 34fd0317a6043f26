"""One process at a time in a run folder; what a killed one left behind locks nothing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from mst.errors import UsageError
from mst.runtime.storage.lock import LOCK_NAME, only_process_in
from runtime.holder import held_by_another


def test_a_second_process_is_told_who_is_at_work(tmp_path: Path) -> None:
    with held_by_another(tmp_path) as other:
        with (
            pytest.raises(UsageError, match=f"is in use by process {other.pid} on .*: wait for it"),
            only_process_in(tmp_path),
        ):
            pass
        assert (tmp_path / LOCK_NAME).exists()


def test_a_killed_holder_leaves_a_file_that_locks_nothing(tmp_path: Path) -> None:
    with held_by_another(tmp_path) as other:
        other.kill()
        other.wait()
    assert (tmp_path / LOCK_NAME).exists()
    with only_process_in(tmp_path):
        pass
    assert not list(tmp_path.iterdir())


CONTEND = """
import os, sys
from pathlib import Path
from mst.errors import UsageError
from mst.runtime.storage.lock import only_process_in
folder, times, entered = Path(sys.argv[1]), int(sys.argv[2]), 0
inside = folder / "inside"
while entered < times:
    try:
        with only_process_in(folder):
            os.close(os.open(inside, os.O_CREAT | os.O_EXCL))  # fails where two are inside
            entered += 1
            inside.unlink()
    except UsageError:
        continue
"""


def test_no_two_are_ever_inside(tmp_path: Path) -> None:
    words = [sys.executable, "-c", CONTEND, str(tmp_path), "300"]
    others = [subprocess.Popen(words, stderr=subprocess.PIPE, text=True) for _ in range(4)]
    for other in others:
        _, errors = other.communicate(timeout=60)
        assert other.returncode == 0, errors
    assert not list(tmp_path.iterdir())
