"""What a command is started in: no home folder, no working folder, no width, too many threads."""

from __future__ import annotations

import os
import pwd
from pathlib import Path
from typing import Any

import pytest

from commands.calls import call, image_folder
from mst.data.files.folders import cache_folder

QUICK = ("--monitor.tensorboard", "false", "--runtime.precision", "fp32", "--runtime.workers", "0")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return image_folder(tmp_path_factory.mktemp("images") / "set", 8)


def nobody(*_: Any) -> None:
    raise KeyError("uid not found")


def test_a_user_without_a_home_folder(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("HOME", "USER", "LOGNAME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", nobody)
    assert cache_folder() is None
    assert call(capsys, "plan", "debug", "--data.train", images, "--no-probe", *QUICK).status == 0
    out = tmp_path / "run"
    assert call(capsys, "pretrain", "debug", "--data.train", images, "--out", out, *QUICK).status == 0
    assert "HOME is not set" in call(capsys, "report", "~/run").line
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "kept"))
    assert cache_folder() == tmp_path / "kept" / "mst" / "index"


def test_a_working_folder_that_is_gone(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    answer = call(capsys, "inspect", images)
    assert answer.status == 2
    assert "the working folder cannot be used" in answer.line
    assert call(capsys, "--help").status == 0


@pytest.mark.parametrize("columns", ["0", "3", "-5", "²", "9" * 5000, "x"])
def test_a_width_that_shows_nothing(
    columns: str, images: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    monkeypatch.setenv("TERM", "dumb")
    answer = call(capsys, "inspect", images)
    assert answer.status == 0
    assert "readable" in answer.out
    assert "COLUMNS" not in os.environ


def test_far_more_threads_than_cores(images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("debug", "--data.train", images, "--out", tmp_path / "run")
    answer = call(capsys, "pretrain", *words, "--runtime.threads", 1024)
    assert answer.status == 2
    assert "--runtime.threads 1024: this machine has" in answer.line or (os.cpu_count() or 1) > 255
    assert "must be a whole number" in call(capsys, "pretrain", *words, "--runtime.threads", 100_000).line
