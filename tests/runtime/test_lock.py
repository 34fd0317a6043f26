"""One process at a time in a run folder; what a killed one left behind locks nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from mst.errors import UsageError
from mst.runtime.lock import LOCK_NAME, only_process_in
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
