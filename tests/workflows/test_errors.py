"""Errors of an evaluation as files, and repeated draws, as a user of the command line meets them."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from PIL import Image

from commands.calls import call, labelled_folder
from mst.model.backbone import BackboneSpec
from mst.model.backbone_file import save_backbone
from mst.model.build import build_backbone


@pytest.fixture
def words(tmp_path: Path) -> list[object]:
    spec = BackboneSpec("vit_tiny_patch16_224", (32, 32), 3, 16, embed_dim=32, depth=2, num_heads=2)
    file = tmp_path / "backbone.safetensors"
    save_backbone(file, build_backbone(spec, seed=1), {"mean": [0.5] * 3, "std": [0.25] * 3})
    data = labelled_folder(tmp_path / "data", val=("cat", "dog"))
    return ["--backbone", file, "--data", data, "--out", tmp_path / "out", "--device", "cpu", "--no-progress"]


def test_errors_are_files(words: list[object], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    answer = call(capsys, "evaluate", "knn", *words, "--neighbors", "1", "--headline", "1")
    assert answer.status == 0, answer.err
    assert " ± " in answer.out
    assert "balanced_accuracy" in answer.out
    assert "top5" not in answer.out
    folder = tmp_path / "out" / "errors" / "knn"
    row = json.loads((tmp_path / "out" / "results.jsonl").read_text())
    with (folder / "predictions.csv").open(newline="") as file:
        answers = list(csv.DictReader(file))
    assert len(answers) == 8
    right = sum(line["class"] == line["predicted"] for line in answers)
    assert 100 * right / 8 == pytest.approx(row["metrics"]["top1"])
    with (folder / "confusion.csv").open(newline="") as file:
        matrix = [list(map(int, line[1:])) for line in list(csv.reader(file))[1:]]
    assert matrix == row["extra"]["confusion"]
    errors = json.loads((folder / "errors.json").read_text())
    assert errors["errors"] == row["extra"]["errors"]
    with Image.open(folder / "errors.png") as picture:
        assert picture.size == (96 * max(1, 8 - right), 96)


def test_seeds_give_mean_and_spread(words: list[object], capsys: pytest.CaptureFixture[str]) -> None:
    few = ["--train-per-class", "2", "--penalties", "0.01"]
    answer = call(capsys, "evaluate", "logistic", *words, *few, "--seeds", "3", "--json")
    assert answer.status == 0, answer.err
    row = json.loads(answer.out)
    values = [draw["metrics"]["top1"] for draw in row["extra"]["draws"]]
    assert row["metrics"]["top1"] == pytest.approx(sum(values) / 3, abs=1e-5)
    assert {"top1_spread", "top1_se"} <= set(row["metrics"])
    assert "spread of 3 draws" in call(capsys, "evaluate", "logistic", *words, *few, "--seeds", "3").out
    for task, more, said in (
        ("knn", ["--seeds", "3"], "--seeds 3: knn draws nothing here, so all results would be the same"),
        ("linear", ["--seeds", "0"], "--seeds 0: must be at least 1"),
    ):
        refused = call(capsys, "evaluate", task, *words, *more)
        assert (refused.status, said in refused.line) == (2, True), refused.err
