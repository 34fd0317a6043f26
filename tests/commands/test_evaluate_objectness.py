"""`mst evaluate objectness` from words to a row, and its mistakes as one line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from commands.calls import call
from evaluate.coco_folders import write_coco
from mst.data.synthetic.styles import STYLES
from mst.model.backbone import BackboneSpec
from mst.model.backbone_file import save_backbone
from mst.model.build import build_backbone
from mst.runtime.storage.results import read_jsonl

WORDS = ["--no-progress", "--precision", "fp32", "--device", "cpu"]


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    spec = BackboneSpec("vit_tiny_patch16_224", (32, 32), 3, 8, embed_dim=32, depth=2, num_heads=2)
    (folder / "config.json").write_text("{}")
    save_backbone(folder / "backbone.safetensors", build_backbone(spec, seed=3).eval(), {})
    return folder


def test_coco_row_and_pictures(run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write_coco(tmp_path / "coco", split="val")
    words = ["evaluate", "objectness", "--backbone", run_folder, "--data", data, "--pictures", tmp_path / "pictures"]
    answer = call(capsys, *words, "--json", *WORDS)
    assert answer.status == 0, answer.err
    row = json.loads(answer.out)
    assert row == read_jsonl(run_folder / "results.jsonl")[-1]
    assert (row["task"], row["protocol"]["data"]) == ("objectness", "instances_val.json")
    assert (row["extra"]["val_images"], row["extra"]["without_objects"]) == (2, 1)
    assert (tmp_path / "pictures" / "0001.png").is_file()


@pytest.mark.parametrize("name", STYLES)
def test_scenes_as_a_table(name: str, run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = f"{name}:3"
    words = ["evaluate", "objectness", "--backbone", f"random:{run_folder}", "--data", data, "--out", tmp_path]
    answer = call(capsys, *words, *WORDS)
    assert answer.status == 0, answer.err
    assert "corloc" in answer.out
    assert "3 validation images" in answer.out
    assert f"{name} of seed 0, 0..2" in read_jsonl(tmp_path / "results.jsonl")[0]["protocol"]["data"]


def test_patch_tokens_have_a_row_and_pictures_of_their_own(
    run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["evaluate", "objectness", "--backbone", f"random:{run_folder}", "--data", "scenes:3", "--out", tmp_path]
    for method in ("attention", "spectral"):
        answer = call(capsys, *words, "--method", method, *WORDS)
        assert answer.status == 0, answer.err
    assert "corloc_colour" in answer.out
    rows = read_jsonl(tmp_path / "results.jsonl")
    assert [row["task"] for row in rows] == ["objectness", "patch_objectness"]
    folders = sorted(path.name for path in (tmp_path / "pictures").iterdir())
    assert folders == ["objectness-untrained", "patch_objectness-untrained"]


@pytest.mark.parametrize(
    ("data", "words", "message"),
    [
        ("scenes:many", [], "name a number of scenes from 1 to 1000000, for example scenes:200"),
        ("scenes:", [], "--data scenes:: name a number of scenes from 1 to 1000000, for example scenes:200"),
        ("muted-scenes:x", [], "name a number of scenes from 1 to 1000000, for example muted-scenes:200"),
        ("scenes:1000001", [], "--data scenes:1000001: name a number of scenes from 1 to 1000000"),
        ("nowhere", [], "no COCO annotations at nowhere/annotations/instances_val.json"),
        ("scenes:2", ["--mass", "2"], "--mass 2.0: must be above 0 and at most 1"),
        ("scenes:2", ["--method", "spectral", "--mass", "0.5"], "--mass 0.5: only attention has a mass"),
        ("scenes:2", ["--method", "colour"], "--method colour"),
        ("scenes:2", ["--size", "30", "32"], "--size 30 32: both must be multiples of the patch size 8"),
        ("scenes:2", ["--limit", "0"], "--limit 0: must be at least 1"),
        ("scenes:2", ["--pictures", "x", "--picture-limit", "-1"], "--picture-limit -1: must be at least 0"),
    ],
)
def test_mistakes(
    run_folder: Path, data: str, words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    answer = call(capsys, "evaluate", "objectness", "--backbone", run_folder, "--data", data, *words, *WORDS)
    assert answer.status == 2
    assert message in answer.line


def test_pictures_replace_their_own_and_no_others(
    run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["evaluate", "objectness", "--backbone", f"random:{run_folder}", "--data", "scenes:2", *WORDS]
    for name in ("0001.png", "scores.jsonl"):
        folder = tmp_path / name.partition(".")[0]
        folder.mkdir()
        (folder / name).write_bytes(b"mine")
        refused = call(capsys, *words, "--pictures", folder)
        assert (refused.status, f"{name} is there and was not written by mst evaluate" in refused.line) == (2, True)
        assert [(path.name, path.read_bytes()) for path in folder.iterdir()] == [(name, b"mine")]
    for _ in range(2):
        assert call(capsys, *words, "--pictures", tmp_path / "own").status == 0
        assert len(read_jsonl(tmp_path / "own" / "scores.jsonl")) == 2
