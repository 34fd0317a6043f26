"""`mst predict classification`: the fine-tuning's own answers again, files, unreadable images, mistakes."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import pytest
from PIL import Image

from commands.calls import call, labelled_folder
from mst.cli import main
from mst.model.backbone import BackboneSpec
from mst.model.backbone_file import save_backbone
from mst.model.build import build_backbone
from mst.runtime.storage.results import read_jsonl

FAST = ["--epochs", "2", "--batch-size", "4", "--base-lr", "0.02", "--device", "cpu", "--workers", "0", "--no-progress"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Return the folder of a fine-tuning, and its images."""
    root = tmp_path_factory.mktemp("classifier")
    spec = BackboneSpec("vit_tiny_patch16_224", (32, 32), 3, 16, embed_dim=32, depth=2, num_heads=2)
    save_backbone(root / "backbone.safetensors", build_backbone(spec, seed=1), {"mean": [0.5] * 3, "std": [0.25] * 3})
    data = labelled_folder(root / "data", val=("cat", "dog"))
    capsys_free = ["finetune", "--backbone", root / "backbone.safetensors", "--data", data, "--out", root / "run"]

    assert main([str(word) for word in [*capsys_free, *FAST]]) == 0
    return root / "run", data


def test_predictions_are_those_of_the_validation(
    run: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, data = run
    out = tmp_path / "new" / "classes.csv"
    words = ["predict", "classification", "--model", folder, "--data", data / "val", "--out", out, "--no-progress"]
    answer = call(capsys, *words)
    assert answer.status == 0, answer.err
    with out.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["path", "class", "probability"]
    with (folder / "errors" / "finetune" / "predictions.csv").open(newline="") as file:
        known = {row["image"]: (row["predicted"], row["probability"]) for row in csv.DictReader(file)}
    assert {row["path"]: (row["class"], f"{float(row['probability']):.4f}") for row in rows} == known
    right = sum(Path(row["path"]).parent.name == row["class"] for row in rows) / len(rows)
    assert 100 * right == pytest.approx(read_jsonl(folder / "results.jsonl")[-1]["metrics"]["top1"], abs=1e-5)
    answer = call(capsys, *words, "--all-probabilities", "--json")  # replaces its own file
    assert json.loads(answer.out)["images"] == len(rows)
    with out.open(newline="") as file:
        wide = list(csv.DictReader(file))
    for row in wide:
        shares = {name: float(row[f"probability of {name}"]) for name in ("cat", "dog")}
        assert sum(shares.values()) == pytest.approx(1, abs=1e-5)
        assert max(shares, key=lambda name: shares[name]) == row["class"]


def test_unreadable_images_are_counted_and_listed(
    run: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, data = run
    photos = tmp_path / "photos"
    shutil.copytree(data / "val", photos)
    (photos / "broken.png").write_bytes(b"no picture")
    out = tmp_path / "classes.json"
    words = ["predict", "classification", "--model", folder, "--data", photos, "--out", out, "--no-progress"]
    answer = call(capsys, *words)
    assert answer.status == 0, answer.err
    assert "1 unreadable" in answer.out
    assert "broken.png" in (tmp_path / "classes.json.unreadable.txt").read_text()
    values = json.loads(out.read_text())
    assert len(values["unreadable"]) == 1
    assert {row["class"] for row in values["images"]} <= set(values["classes"])


def test_mistakes_are_one_line(run: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, data = run
    foreign = tmp_path / "mine.csv"
    foreign.write_text("mine")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "a.png").write_bytes(b"no picture")
    Image.new("RGB", (8, 8)).save(tmp_path / "one.png")
    damaged = tmp_path / "damaged"
    shutil.copytree(folder, damaged)
    (damaged / "classes.json").write_text('["cat", "dog", "cow"]')
    shutil.copytree(folder, tmp_path / "bare")
    (tmp_path / "bare" / "classifier.safetensors").unlink()
    for model, images, out, said in (
        (folder, data, tmp_path / "x.txt", "name a file that ends in .csv or .json"),
        (folder, data, foreign, "mine.csv is there and was not written by mst predict classification"),
        (folder, tmp_path / "nowhere", tmp_path / "x.csv", "nowhere"),
        (folder, tmp_path / "broken", tmp_path / "x.csv", "none of 1 images can be read"),
        (tmp_path / "bare", data, tmp_path / "x.csv", "has no classifier.safetensors, so it holds no fine-tuned"),
        (damaged, data, tmp_path / "x.csv", "does not fit its description"),
        (folder, tmp_path / "one.png", tmp_path / "one.png", "name a file that ends in .csv or .json"),
    ):
        answer = call(
            *(capsys, "predict", "classification", "--model", model, "--data", images, "--out", out, "--no-progress")
        )
        assert answer.status in {1, 2}, (said, answer.err)
        assert said in answer.line
    assert foreign.read_text() == "mine"


def test_the_list_of_an_earlier_prediction_goes(
    run: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, data = run
    photos = tmp_path / "photos"
    shutil.copytree(data / "val", photos)
    (photos / "broken.png").write_bytes(b"no picture")
    words = ["predict", "classification", "--model", folder, "--data", photos, "--out", tmp_path / "c.csv"]
    listing = tmp_path / "c.csv.unreadable.txt"
    assert call(capsys, *words, "--no-progress").status == 0
    assert listing.exists()
    (photos / "broken.png").unlink()
    assert call(capsys, *words, "--no-progress").status == 0
    assert not listing.exists()
    listing.write_text("mine")
    assert "was changed since" in call(capsys, *words, "--no-progress").line
    assert listing.read_text() == "mine"
