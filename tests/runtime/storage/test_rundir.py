"""Which folders a new run may take, and what `--overwrite` may delete."""

from __future__ import annotations

from pathlib import Path

import pytest

from mst.errors import UsageError
from mst.runtime.storage.files import aside_of
from mst.runtime.storage.lock import LOCK_NAME
from mst.runtime.storage.rundir import create_run_dir, open_run_dir

CONFIG = '{"recipe": "debug", "objective": {}}'


def test_overwrite_deletes_a_run_and_nothing_else(tmp_path: Path) -> None:
    run = tmp_path / "run"
    (run / "checkpoints/step_1").mkdir(parents=True)
    (run / "config.json").write_text(CONFIG)
    with pytest.raises(UsageError, match="already holds a run"):
        create_run_dir(run, overwrite=False)
    create_run_dir(run, overwrite=True)
    assert not list(run.iterdir())


def test_overwrite_spares_folders_whose_config_is_another_programs(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"architectures": ["ViT"], "recipe": "x"}')
    (tmp_path / "weights.bin").write_bytes(b"precious")
    with pytest.raises(UsageError, match="holds no run"):
        create_run_dir(tmp_path, overwrite=True)
    assert (tmp_path / "weights.bin").exists()


def test_a_lock_left_behind_does_not_make_a_folder_full(tmp_path: Path) -> None:
    (tmp_path / LOCK_NAME).write_text("process 1 on nowhere\n")
    create_run_dir(tmp_path, overwrite=False)


def test_a_folder_in_a_file_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(UsageError, match="which is a file: name a folder"):
        create_run_dir(tmp_path / "file" / "run", overwrite=False)
    with pytest.raises(UsageError, match="holds no run"):
        open_run_dir(tmp_path)


def test_what_a_run_killed_in_its_first_moments_left_is_no_run(tmp_path: Path) -> None:
    for name in (LOCK_NAME, "plan.json", "environment.json", aside_of(tmp_path / "config.json").name):
        (tmp_path / name).write_text("{")
    create_run_dir(tmp_path, overwrite=False)
    assert not list(tmp_path.iterdir())
    (tmp_path / ".notes.tmp").write_text("mine")
    with pytest.raises(UsageError, match="holds no run"):
        create_run_dir(tmp_path, overwrite=True)
