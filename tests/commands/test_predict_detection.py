"""`mst predict detection`: COCO JSON and pictures from a saved detector, and its mistakes as one line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image
from pycocotools.coco import COCO

from commands.calls import call
from commands.test_evaluate_detection import WORDS
from data.pictures import write_textures
from evaluate.coco_folders import write_coco
from mst.cli import main
from mst.model.backbone import BackboneSpec
from mst.model.backbone_file import save_backbone
from mst.model.build import build_backbone
from mst.report.page import write_report
from mst.runtime.storage.rundir import RunDir

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
SPEC = BackboneSpec("vit_tiny_patch16_224", (32, 32), 3, 16, embed_dim=32, depth=2, num_heads=2)
QUIET = ["--no-progress", "--precision", "fp32", "--device", "cpu"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder whose backbone was evaluated, untrained and trained, with the second detector saved into it."""
    folder = tmp_path_factory.mktemp("run")
    (folder / "config.json").write_text("{}")
    save_backbone(folder / "backbone.safetensors", build_backbone(SPEC, seed=3).eval(), {})
    write_coco(folder / "coco")
    data = write_coco(folder / "coco", split="val")
    for name, saving in ((f"random:{folder}", []), (folder, ["--out", folder])):
        words = ["evaluate", "detection", "--backbone", name, "--data", data, *saving, *WORDS]
        assert main([str(word) for word in words]) == 0
    return folder


def test_json_and_pictures(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, out = tmp_path / "photos", tmp_path / "new" / "found"
    write_textures(data / "deep", 2, size=40)
    Image.new("RGB", (900, 3)).save(data / "stripe.png")
    (data / "broken.jpg").write_bytes(b"no picture")
    words = ["predict", "detection", "--model", model, "--data", data, "--out", out, *QUIET]
    answer = call(capsys, *words, "--min-score", "0", "--picture-score", "0", "--json")
    assert answer.status == 0, answer.err
    assert "2 of 4 images left out, the first:" in answer.err
    row = json.loads(answer.out)
    assert (row["images"], len(row["unreadable"])) == (2, 2)
    content = json.loads((out / "predictions.json").read_text())
    assert [image["file_name"].split("/")[0] for image in content["images"]] == ["deep", "deep"]
    assert [category["name"] for category in content["categories"]] == ["box", "disc"]
    assert sum(row["objects"].values()) == len(content["annotations"]) > 0
    coco = COCO(str(out / "predictions.json"))
    for record in list(coco.anns.values())[:5]:
        assert coco.annToMask(record).sum() == record["area"]
    assert len(coco.loadRes(content["annotations"]).anns) == len(coco.anns)
    assert len(list((out / "pictures").glob("*.png"))) == 2
    with Image.open(next((out / "pictures").glob("*.png"))) as picture:
        assert picture.size == (40, 40)
    words[5] = data / "deep"
    table = call(capsys, *words, "--picture-limit", "0", "--limit", "1")
    assert table.status == 0
    assert "objects above 0.05" in table.out


def test_the_report_shows_what_was_found(model: Path) -> None:
    page = write_report(RunDir(model)).read_text()
    assert "Detection, untrained network" in page
    assert page.count("data:image/png") == 6


def test_mistakes(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_textures(tmp_path / "photos", 1, size=40)
    (tmp_path / "broken.jpg").write_bytes(b"no picture")
    (tmp_path / "file").write_text("x")
    for changed, message in (
        ({"--model": tmp_path}, "has no detector.json: give the --save-model or --out of an `mst evaluate detection`"),
        ({"--data": tmp_path / "gone"}, "gone does not exist"),
        ({"--data": tmp_path / "broken.jpg"}, "none of 1 images can be read, the first:"),
        ({"--out": tmp_path / "file"}, "is a file: name a folder"),
        ({"--out": tmp_path / "photos"}, "would be read as images the next time; name a folder apart"),
        ({"--out": tmp_path / "photos" / "found.1"}, "would be read as images the next time; name a folder apart"),
        ({"--min-score": "2"}, "--min-score 2.0: must be between 0 and 1"),
        ({"--picture-limit": "-1"}, "--picture-limit -1: must be at least 0"),
    ):
        options = {"--model": model, "--data": tmp_path / "photos", "--out": tmp_path / "o", **changed}
        answer = call(capsys, "predict", "detection", *(word for pair in options.items() for word in pair), *QUIET)
        assert answer.status == 2
        assert message in answer.line
    answer = call(capsys, "predict", "detektion")
    assert (answer.status, "did you mean detection?" in answer.line) == (2, True)
    assert "usage: mst predict" in call(capsys, "predict").out


@pytest.mark.parametrize("name", ["predictions.json", "pictures/0000-texture.png"])
def test_files_of_the_user_stay(name: str, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = tmp_path / "data"
    write_textures(data / "images", 1, size=40)
    (data / name).parent.mkdir(exist_ok=True)
    (data / name).write_bytes(b"the truth")
    words = ["predict", "detection", "--model", model, "--data", data / "images", *QUIET, "--out"]
    answer = call(capsys, *words, data)
    assert (answer.status, "is there and was not written by mst predict detection" in answer.line) == (2, True)
    assert (data / name).read_bytes() == b"the truth"
    assert [call(capsys, *words, tmp_path / "found").status for _ in range(2)] == [0, 0]
