"""A run folder of version 0.1.0 (commit db499e5): what it holds is read, and what can't be gone on with says why.

The fixture holds a `debug` run of 4 steps (one block of 16 numbers), its 8 images, and the features that version gave.
"""

from __future__ import annotations

import tarfile
from pathlib import Path

import numpy as np
import pytest

from commands.calls import call

FIXTURE = Path(__file__).parents[1] / "fixtures" / "run_0.1.0.tar.xz"
CPU = ["--device", "cpu", "--precision", "fp32"]


@pytest.fixture
def old(tmp_path: Path) -> Path:
    with tarfile.open(FIXTURE) as archive:
        archive.extractall(tmp_path, filter="data")
    return tmp_path


def test_features_of_an_old_backbone_are_those_it_had(old: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = old / "again.npz"
    answer = call(capsys, "embed", "--backbone", old / "run", "--data", old / "images", "--out", out, *CPU)
    assert answer.status == 0, answer.err
    with np.load(old / "features.npz") as then, np.load(out) as now:
        assert [Path(path).name for path in now["paths"]] == [Path(path).name for path in then["paths"]]
        np.testing.assert_allclose(now["features"], then["features"], rtol=1e-5, atol=1e-6)


def test_an_old_run_is_reported_exported_and_started_from(old: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = old / "run"
    small = ["--model.embed-dim", "16", "--model.depth", "1", "--model.num-heads", "1", "--train.batch-size", "4"]
    for words in (
        ["report", run],
        ["export", "--backbone", run, "--format", "timm", "--out", old / "timm"],
        ["pretrain", "debug", "--data.train", old / "images", "--out", old / "new", "--init", run, *small],
    ):
        answer = call(capsys, *words)
        assert answer.status == 0, answer.err
    assert (run / "report.html").is_file()


def test_an_old_checkpoint_is_refused_with_the_way_on(old: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.read_bytes() for path in (old / "run" / "checkpoints").rglob("*") if path.is_file()}
    answer = call(capsys, "pretrain", "--resume", old / "run", "--data.train", old / "images")
    assert answer.status == 2
    said = answer.err.splitlines()[-1]
    assert "has format 1, this version of mst reads 2" in said
    assert "--init" in said
    assert {path: path.read_bytes() for path in before} == before
