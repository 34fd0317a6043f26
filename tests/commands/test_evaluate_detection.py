"""`mst evaluate detection` from words to a row, files beside it, and its mistakes as one line."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from commands.calls import call
from evaluate.coco_folders import coco_content, write_coco
from mst.model.backbone import BackboneSpec
from mst.model.backbone_file import save_backbone
from mst.model.build import build_backbone
from mst.runtime.storage.results import read_jsonl

SMALL = ["--epochs", "1", "--batch-size", "2", "--short-sides", "48", "--long-side", "64", "--channels", "8"]
WORDS = [*SMALL, "--head-dim", "16", "--anchor-size", "8", "--no-progress", "--precision", "fp32", "--device", "cpu"]


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    spec = BackboneSpec("vit_tiny_patch16_224", (32, 32), 3, 16, embed_dim=32, depth=2, num_heads=2)
    (folder / "config.json").write_text("{}")
    save_backbone(folder / "backbone.safetensors", build_backbone(spec, seed=3).eval(), {})
    return folder


@pytest.fixture
def data(tmp_path: Path) -> Path:
    write_coco(tmp_path / "coco")
    return write_coco(tmp_path / "coco", split="val")


def test_a_row_and_files(run_folder: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = ["--detections", tmp_path / "new" / "found.json", "--pictures", tmp_path / "p", "--picture-limit", "2"]
    words = ["evaluate", "detection", "--backbone", run_folder, "--data", data, *files, "--frozen"]
    answer = call(capsys, *words, "--checkpoints", tmp_path / "c", "--json", *WORDS)
    assert answer.status == 0, answer.err
    row = json.loads(answer.out)
    assert row == read_jsonl(run_folder / "results.jsonl")[-1]
    assert row["task"] == "detection"
    assert {"ap_box", "ap50_box", "ap_mask", "ap50_mask"} <= set(row["metrics"])
    assert (row["protocol"]["frozen"], row["protocol"]["short_sides"]) == (True, [48])
    assert (row["extra"]["train_images"], row["extra"]["val_images"], row["extra"]["steps"]) == (2, 3, 1)
    found = json.loads((tmp_path / "new" / "found.json").read_text())
    assert len(found) == row["extra"]["detections"]
    assert len(list((tmp_path / "p").glob("*.png"))) == 2
    again = call(capsys, *words, "--checkpoints", tmp_path / "c", "--json", *WORDS)
    assert "resuming the detector at step 1" in again.err
    assert json.loads(again.out)["metrics"] == row["metrics"]


def test_mistakes(run_folder: Path, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = ["evaluate", "detection", "--backbone", run_folder, "--data"]
    for words, message in (
        ([data / "nowhere"], "no COCO annotations at"),
        ([data / "annotations" / "instances_val.json"], "is one file: name a folder with annotations for training"),
        ([data, "--train-limit", "0"], "--train-limit 0: must be at least 1"),
        ([data, "--detections", "x.txt"], "--detections x.txt: name a .json file"),
        ([data, "--val-split", "test"], "instances_test.json"),
        ([data, "--clip-norm", "0"], "--clip-norm 0.0: must be above 0"),
    ):
        answer = call(capsys, *base, *words, *([] if "--clip-norm" in words else WORDS))
        assert (answer.status, message in answer.line) == (2, True), answer.err
    content = coco_content()
    content["annotations"][0]["category_id"] = 99
    (data / "annotations" / "instances_val.json").write_text(json.dumps(content))
    answer = call(capsys, *base, data, *WORDS, "--strict")
    assert "instances_val.json: 1 bad record, the first: annotation 11 of a.png: category_id 99" in answer.line


def test_what_is_left_out_stands_in_the_row(run_folder: Path, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = coco_content()
    content["annotations"][0]["category_id"] = 99
    (data / "annotations" / "instances_val.json").write_text(json.dumps(content))
    words = ["evaluate", "detection", "--backbone", run_folder, "--data", data, *WORDS]
    answer = call(capsys, *words, "--json")
    assert json.loads(answer.out)["extra"]["left_out"] == {"train": {}, "val": {"unknown category": 1}}
    assert "val annotations: 1 unknown category" in call(capsys, *words).out


def test_a_missing_extra_is_said_before_any_work(
    run_folder: Path, data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in [name for name in sys.modules if name.startswith("faster_coco_eval")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "faster_coco_eval", None)
    answer = call(capsys, "evaluate", "detection", "--backbone", run_folder, "--data", data, *WORDS)
    assert answer.status == 2
    assert "faster-coco-eval is not installed: pip install 'mst-pretrain[detection]'" in answer.line


def test_files_of_the_user_stay(
    run_folder: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    truth, pictures = data / "annotations" / "instances_val.json", tmp_path / "mine"
    pictures.mkdir()
    (pictures / "0000-a.png").write_bytes(b"mine")
    before = truth.read_bytes()
    words = ["evaluate", "detection", "--backbone", run_folder, "--data", data, *WORDS]
    for extra, name in ((["--detections", truth], truth.name), (["--pictures", pictures], "0000-a.png")):
        answer = call(capsys, *words, *extra)
        assert (answer.status, f"{name} is there and was not written by" in answer.line) == (2, True), answer.err
    assert (truth.read_bytes(), (pictures / "0000-a.png").read_bytes()) == (before, b"mine")
