"""Pipes, folders and links in place of a run's files: one line, or a page, and never a traceback (see `attacks`)."""

from __future__ import annotations

import contextlib
import os
import shutil
from pathlib import Path

import pytest

from commands.calls import call, image_folder, labelled_folder
from mst.cli import main

FILES = ("config.json", "plan.json", "environment.json", "metrics.jsonl", "results.jsonl", "backbone.json")
QUICK = ["--runtime.workers", "0", "--runtime.device", "cpu", "--train.epochs", "2"]
BUGS = ("this is a bug", "Traceback")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pre-training with results."""
    root = tmp_path_factory.mktemp("folders")
    images, labelled = image_folder(root / "images", 16), labelled_folder(root / "labelled", val=("cat", "dog"))
    for words in (
        ["pretrain", "debug", "--data.train", images, "--out", root / "pre", *QUICK],
        ["evaluate", "knn", "--backbone", root / "pre", "--data", labelled, "--no-progress"],
    ):
        assert main([str(word) for word in words]) == 0
    return root / "pre"


@pytest.mark.parametrize("name", FILES)
def test_pipes_folders_and_links_in_place_of_files(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    for kind in ("pipe", "folder", "dead link", "loop"):
        copy = tmp_path / kind
        shutil.copytree(run, copy)
        file = copy / name
        file.unlink()
        if kind == "pipe":
            os.mkfifo(file)
        elif kind == "folder":
            file.mkdir()
        else:
            file.symlink_to("nowhere" if kind == "dead link" else name)
        with contextlib.suppress(RecursionError):
            for words in (["report", copy], ["compare", copy, run]):
                answer = call(capsys, *words)
                assert not any(bug in answer.err for bug in BUGS), (kind, answer.err)
