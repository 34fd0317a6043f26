"""`mst evaluate segmentation` and `mst predict segmentation` from words to rows, files, report, and mistakes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from commands.calls import call
from evaluate.segmentation.test_cityscapes import write_city
from evaluate.segmenters import striped_folder, vit
from mst.model.backbone_file import save_backbone
from mst.recipes.segmentation import SETR_CITYSCAPES
from mst.report.page import write_report
from mst.runtime.storage.results import read_jsonl
from mst.runtime.storage.rundir import RunDir

QUIET = ["--no-progress", "--precision", "fp32", "--device", "cpu"]
SMALL = ["--size", "32", "48", "--steps", "4", "--batch-size", "2", "--channels", "8"]


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    save_backbone(folder / "backbone.safetensors", vit().eval(), {})
    return folder


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return striped_folder(tmp_path / "data")


def test_from_training_to_masks_and_report(
    run_folder: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    words = ["evaluate", "segmentation", "--backbone", run_folder, "--data", data, *SMALL, *QUIET]
    answer = call(capsys, *words, "--head", "setr-pup", "--train-backbone", "--out", out, "--json")
    assert answer.status == 0, answer.err
    row = json.loads(answer.out)
    assert row == read_jsonl(out / "results.jsonl")[-1]
    assert (row["task"], row["protocol"]["head"], row["extra"]["steps"]) == ("segmentation", "setr-pup", 4)
    assert [entry["name"] for entry in row["extra"]["per_class"]] == ["dark", "bright"]
    assert [entry["step"] for entry in read_jsonl(out / "metrics.jsonl")] == [1, 4]
    assert len(list((out / "pictures" / "segmentation").glob("*.png"))) == 2

    photos, found = tmp_path / "photos", tmp_path / "found"
    (photos / "deep").mkdir(parents=True)
    for name in ("a.png", "a.jpg", "deep/a.png"):
        Image.open(data / "images" / "3.png").convert("RGB").resize((50, 30)).save(photos / name)
    (photos / "broken.jpg").write_bytes(b"no picture")
    words = ["predict", "segmentation", "--model", out, "--data", photos, "--out", found, *QUIET]
    answer = call(capsys, *words, "--picture-limit", "2", "--json")
    assert answer.status == 0, answer.err
    assert "1 of 4 images left out, the first:" in answer.err
    said = json.loads(answer.out)
    assert (said["images"], len(said["unreadable"])) == (3, 1)
    assert sum(said["pixel_percent"].values()) == pytest.approx(100)
    masks = sorted(str(path.relative_to(found / "masks")) for path in (found / "masks").rglob("*.png"))
    assert masks == ["a-2.png", "a.png", "deep/a.png"]
    mask = np.asarray(Image.open(found / "masks" / "deep" / "a.png"))
    assert mask.shape == (30, 50)
    assert set(np.unique(mask)) <= {0, 1}
    assert len(list((found / "pictures").rglob("*.png"))) == 2
    assert "bright" in call(capsys, *words).out


def test_the_linear_layer_goes_into_the_run_and_its_report(
    run_folder: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = ["evaluate", "segmentation", "--data", data, "--size", "32", "48", "--steps", "5", *QUIET]
    for name in (f"random:{run_folder}", run_folder):
        answer = call(capsys, *base, "--backbone", name, "--val-limit", "1")
        assert answer.status == 0, answer.err
        assert "3 training and 1 validation images" in answer.out
    assert [row["task"] for row in read_jsonl(run_folder / "results.jsonl")] == ["patch_segmentation"] * 2
    assert len(list((run_folder / "pictures" / "patch_segmentation").glob("*.png"))) == 1
    assert not (run_folder / "segmenter.json").exists()
    page = write_report(RunDir(run_folder)).read_text()
    assert "Segmentation from patch tokens, untrained network" in page


def test_cityscapes_windows_and_checkpoints(
    run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cities = tmp_path / "cities"
    write_city(cities, "train", "aachen", 2, size=(40, 72))
    write_city(cities, "val", "munster", 1, size=(40, 72))
    words = ["evaluate", "segmentation", "--recipe", SETR_CITYSCAPES.name, "--backbone", run_folder, "--data", cities]
    words += ["--size", "32", "32", "--stride", "16", "24", "--steps", "2", "--batch-size", "2", "--channels", "8"]
    words += ["--checkpoints", tmp_path / "c", "--json", *QUIET]
    first = call(capsys, *words)
    assert first.status == 0, first.err
    protocol = json.loads(first.out)["protocol"]
    assert (protocol["optimizer"], protocol["lr"], protocol["clip_norm"]) == ("sgd", 0.1, None)
    assert (protocol["stride"], protocol["train_backbone"], protocol["loss_stride"]) == ([16, 24], True, 1)
    again = call(capsys, *words)
    assert "resuming the setr-pup segmenter at step 2" in again.err
    assert json.loads(again.out)["metrics"] == json.loads(first.out)["metrics"]


def test_mistakes(run_folder: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "cities" / "gtFine").mkdir(parents=True)
    base = ["evaluate", "segmentation", "--backbone", run_folder, "--data"]
    for words, message in (
        ([tmp_path], "has no images: needed are images/, masks/, train.txt, val.txt and classes.json"),
        ([tmp_path / "cities"], "has no leftImg8bit/: Cityscapes needs"),
        ([data, "--size", "30", "48"], "--size 30x48 is not a multiple of the patch size 16"),
        ([data, "--stride", "64", "64"], "--stride 64 64: must be between 1 and the window"),
        ([data, "--head", "setr"], "--head setr: must be one of linear, setr-naive, setr-pup, upernet"),
        ([data, "--train-limit", "0"], "--train-limit 0: must be at least 1"),
        ([data, "--save-model", tmp_path / "file"], "is a file: name a folder"),
        ([data, "--pictures", tmp_path / "file"], "is a file: name a folder"),
        ([data, "--class-weights", "1", "2", "3"], "--class-weights has 3 numbers: give one for each of the 2 classes"),
    ):
        answer = call(capsys, *base, *words, *QUIET)
        assert answer.status == 2, (words, answer.err)
        assert message in answer.err
        assert "Traceback" not in answer.err
    Image.new("L", (48, 32), 5).save(data / "masks" / "4.png")
    for head in ("linear", "setr-naive"):
        answer = call(capsys, *base, data, *SMALL, "--head", head, *QUIET)
        assert answer.status == 2
        assert "masks/4.png: 5 is no class of 0..1 and not ignore_index 7" in answer.err
    predict = ["predict", "segmentation", "--data", data / "images", "--out"]
    for words, message in (
        ([tmp_path / "o", "--model", run_folder], "has no segmenter.json: give the --save-model"),
        ([tmp_path / "file", "--model", run_folder], "is a file: name a folder"),
        ([tmp_path / "o", "--model", run_folder, "--limit", "0"], "--limit 0: must be at least 1"),
    ):
        answer = call(capsys, *predict, *words, *QUIET)
        assert (answer.status, message in answer.err) == (2, True), answer.err


def test_masks_and_pictures_of_the_user_stay(
    run_folder: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, pictures = tmp_path / "model", tmp_path / "pictures"
    (pictures / "deep").mkdir(parents=True)
    (pictures / "0000-3.png").write_bytes(b"mine")
    train = ["evaluate", "segmentation", "--backbone", run_folder, "--data", data, *SMALL, *QUIET, "--out", model]
    answer = call(capsys, *train, "--pictures", pictures)
    assert (answer.status, "0000-3.png is there and was not written by" in answer.line) == (2, True), answer.err
    assert (pictures / "0000-3.png").read_bytes() == b"mine"
    assert call(capsys, *train, "--head", "setr-naive").status == 0

    before = {path: path.read_bytes() for path in data.rglob("*.png")}
    words = ["predict", "segmentation", "--model", model, "--data", data / "images", *QUIET, "--out"]
    answer = call(capsys, *words, data)
    assert (answer.status, "masks/0.png is there and was not written by mst predict" in answer.line) == (2, True)
    assert {path: path.read_bytes() for path in data.rglob("*.png")} == before

    assert [call(capsys, *words, tmp_path / "found").status for _ in range(2)] == [0, 0]
    Image.new("L", (48, 32), 1).save(tmp_path / "found" / "masks" / "2.png")  # corrected by hand
    answer = call(capsys, *words, tmp_path / "found")
    assert (answer.status, "masks/2.png is there and was changed since" in answer.line) == (2, True)


def test_bad_pairs_and_turned_masks_from_the_command(
    run_folder: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["evaluate", "segmentation", "--backbone", run_folder, "--data", data, "--steps", "2", *QUIET, "--json"]
    words += ["--max-unreadable-share", "0.5"]
    exif = Image.Exif()
    exif[0x0112] = 3
    Image.open(data / "images" / "1.png").save(data / "images" / "1.png", exif=exif)
    (data / "masks" / "0.png").write_bytes(b"no picture")
    answer = call(capsys, *words)
    assert answer.status == 0, answer.err
    extra = json.loads(answer.out)["extra"]
    assert (extra["train_images"], extra["left_out"]) == (2, {"train": 1, "val": 0})
    assert "EXIF turns 1 of 5 images" in answer.err
    assert "EXIF" not in call(capsys, *words, "--annotations", "stored").err
    strict = call(capsys, *words, "--strict")
    assert (strict.status, strict.out) == (2, "")
    assert "1 of 3 " in strict.err
    assert "0.png: cannot be read as a mask" in strict.err
