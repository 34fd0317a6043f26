"""Thousands of damaged run folders into the commands that read them: one line, or a page, and never a traceback."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
from pathlib import Path

import pytest

from commands.calls import call, image_folder, labelled_folder
from mst.cli import main
from report.damage import damaged

FILES = ("config.json", "plan.json", "environment.json", "metrics.jsonl", "results.jsonl", "backbone.json")
QUICK = ["--runtime.workers", "0", "--runtime.device", "cpu", "--train.epochs", "2"]
TUNE = ["--epochs", "1", "--batch-size", "4", "--workers", "0", "--no-progress", "--device", "cpu"]
BUGS = ("this is a bug", "Traceback")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pre-training `pre`, with results, and a fine-tuning `tuned`."""
    root = tmp_path_factory.mktemp("folders")
    images, labelled = image_folder(root / "images", 16), labelled_folder(root / "labelled", val=("cat", "dog"))
    for words in (
        ["pretrain", "debug", "--data.train", images, "--out", root / "pre", *QUICK],
        ["evaluate", "knn", "--backbone", root / "pre", "--data", labelled, "--no-progress"],
        ["finetune", "--backbone", root / "pre", "--data", labelled, "--out", root / "tuned", *TUNE],
    ):
        assert main([str(word) for word in words]) == 0
    return root


def attack(folders: Path, work: Path, capsys: pytest.CaptureFixture[str], seeds: range, share: float) -> None:
    for seed in seeds:
        draw = random.Random(seed)
        kind = draw.choice(("pre", "pre", "tuned"))
        run = work / kind
        if not run.exists():
            shutil.copytree(folders / kind, run)
        name = draw.choice([name for name in FILES if (run / name).exists()])
        sound = (folders / kind / name).read_bytes()
        (run / name).write_bytes(damaged(sound, draw))
        calls: list[list[object]] = [["report", run], ["compare", run, folders / kind]]
        if draw.random() < share:
            calls.append(["evaluate", "knn", "--backbone", run, "--data", folders / "labelled", "--no-progress"])
            calls.append(["pretrain" if kind == "pre" else "finetune", "--resume", run])
        for words in calls:
            answer = call(capsys, *words)
            said = f"seed {seed}, {name} into {words[0]}: {answer.err[-600:]}"
            assert not any(bug in answer.err for bug in BUGS), said
            assert answer.status in {0, 1, 2}, said
            assert not answer.status or answer.err.splitlines()[-1].startswith("mst: error: "), said
        for path in folders.joinpath(kind).iterdir():  # whatever the commands wrote
            if path.is_file() and (run / path.name).read_bytes() != path.read_bytes():
                shutil.copy(path, run / path.name)


def test_damaged_files(folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    attack(folders, tmp_path, capsys, range(12), 0.1)


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("part", range(20))
def test_ten_thousand_damaged_files(
    folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], part: int
) -> None:
    attack(folders, tmp_path, capsys, range(1000 + 500 * part, 1500 + 500 * part), 0.1)


@pytest.mark.parametrize("name", FILES)
def test_pipes_folders_and_links_in_place_of_files(
    folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    for kind in ("pipe", "folder", "dead link", "loop"):
        run = tmp_path / kind
        shutil.copytree(folders / "pre", run)
        file = run / name
        file.unlink()
        if kind == "pipe":
            os.mkfifo(file)
        elif kind == "folder":
            file.mkdir()
        else:
            file.symlink_to("nowhere" if kind == "dead link" else name)
        with contextlib.suppress(RecursionError):
            for words in (["report", run], ["compare", run, folders / "pre"]):
                answer = call(capsys, *words)
                assert not any(bug in answer.err for bug in BUGS), (kind, answer.err)
