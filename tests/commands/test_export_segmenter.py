"""`mst export --model` of segmenters: other programs give the logits, and `mst predict` the same masks."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import mst
from commands.calls import call
from evaluate.segmenters import swin, vit
from mst.evaluate.segmentation.file import load_segmenter, save_segmenter
from mst.evaluate.segmentation.heads import HeadName, HeadShape
from mst.evaluate.segmentation.inference import View
from mst.evaluate.segmentation.model import Segmenter
from mst.model.backbone import Backbone
from mst.workflows.exporting.settings import ExportSettings

CLASSES = ("ground", "road", "sky")


def trained(folder: Path, backbone: Backbone, head: HeadName, stride: tuple[int, int] | None = None) -> Path:
    """Save a segmenter whose head and statistics are drawn."""
    segmenter = Segmenter(backbone, CLASSES, HeadShape(head, channels=8), frozen=True, seed=1).eval()
    draws = torch.Generator().manual_seed(2)
    for module in segmenter.modules():
        if isinstance(module, nn.BatchNorm2d) and module.running_mean is not None and module.running_var is not None:
            module.running_mean.normal_(0, 0.1, generator=draws)
            module.running_var.uniform_(0.5, 1.5, generator=draws)
    save_segmenter(folder, segmenter, View(backbone.spec.image_size, stride, (0.5,) * 3, (0.25,) * 3))
    return folder


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, draw = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for index in range(3):
        noise = draw.integers(0, 255, (4, 5, 3), dtype=np.uint8)
        Image.fromarray(noise).resize((70, 50 + 16 * index)).save(folder / f"{index}.png")
    return folder


def masks(model: Path, pictures: Path, out: Path, capsys: pytest.CaptureFixture[str]) -> list[bytes]:
    words = ["predict", "segmentation", "--model", model, "--data", pictures, "--out", out, "--picture-limit", "0"]
    answer = call(capsys, *words, "--device", "cpu", "--precision", "fp32", "--no-progress")
    assert answer.status == 0, answer.err
    return [path.read_bytes() for path in sorted((out / "masks").iterdir())]


@pytest.mark.parametrize("form", ["onnx", "torch-export", "safetensors"])
def test_masks_of_an_export_are_those_of_the_segmenter(
    form: str, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if form == "onnx":
        pytest.importorskip("onnxruntime")
    model = trained(tmp_path / "model", vit(), "linear", stride=(16, 16))
    words = ["export", "--model", model, "--format", form, "--out", tmp_path / "o", "--images", pictures]
    answer = call(capsys, *words)
    assert answer.status == 0, answer.err
    assert "classes of pixels the same for 100 %" in " ".join(answer.out.split())
    assert ("mst predict averages the logits of windows" in " ".join(answer.err.split())) == (form != "safetensors")
    parity = json.loads((tmp_path / "o" / "parity.json").read_text())
    assert (parity["task"], parity["classes"]) == ("segmentation", list(CLASSES))
    assert parity["measured"][0]["outputs"]["logits"]["relative"] < 1e-5
    own = masks(model, pictures, tmp_path / "own", capsys)
    assert len(own) == 3
    assert own == masks(tmp_path / "o", pictures, tmp_path / "other", capsys)


@pytest.mark.parametrize(("head", "any_size"), [("linear", True), ("setr-pup", False), ("upernet", False)])
def test_heads_in_onnx(head: HeadName, any_size: bool, pictures: Path, tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    model = trained(tmp_path / "model", vit(), head)
    settings = ExportSettings(images=pictures, any_size=any_size)
    assert mst.export_model(model, tmp_path / "o", form="onnx", settings=settings)["difference"] < 1e-5
    running = onnxruntime.InferenceSession(tmp_path / "o" / "segmenter.onnx")
    said = json.loads(running.get_modelmeta().custom_metadata_map["mst"])
    assert (said["classes"], said["view"]["size"]) == (list(CLASSES), [32, 32])
    images = torch.randn(1, 3, *((48, 80) if any_size else (32, 32)))
    logits, classes = running.run(["logits", "classes"], {"images": images.numpy()})
    expected = load_segmenter(model, torch.device("cpu")).segmenter(images)
    torch.testing.assert_close(torch.from_numpy(logits), expected, atol=1e-4, rtol=1e-4)
    assert classes.shape == (1, *images.shape[-2:])


@pytest.mark.slow
def test_a_swin_with_upernet(pictures: Path, tmp_path: Path) -> None:
    model = trained(tmp_path / "model", swin(), "upernet")
    for form in ("onnx", "torch-export"):
        found = mst.export_model(model, tmp_path / form, form=form, settings=ExportSettings(images=pictures))
        assert found["difference"] < 1e-5


def test_mistakes_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = trained(tmp_path / "model", vit(), "linear")
    mst.export_model(model, tmp_path / "exported", form="torch-export")
    description = tmp_path / "exported" / "segmenter.json"
    export = ["export", "--model", model, "--out", tmp_path / "o", "--format"]
    predict = ["predict", "segmentation", "--data", tmp_path, "--out", tmp_path / "o", "--model"]
    for words, said in (
        (
            [*export, "timm"],
            "timm has no network of this backbone with this head: use onnx, torch-export or safetensors",
        ),
        ([*export, "hf"], "transformers has no network"),
        ([*export, "torch-export", "--outputs", "classes"], "logits are needed"),
        ([*export, "onnx", "--outputs", "features"], "must be among logits, classes"),
        ([*predict, tmp_path], "has no segmenter.json"),
        (
            ["embed", "--backbone", tmp_path / "exported", "--data", tmp_path, "--out", tmp_path / "o.npz"],
            "holds none of",
        ),
    ):
        answer = call(capsys, *words)
        assert answer.status == 2, (said, answer.err)
        assert said in answer.line, answer.line
    description.write_text(description.read_text().replace('"stride": null', '"stride": [64, 1]'))
    answer = call(capsys, *predict, tmp_path / "exported")
    assert (answer.status, "must be between 1 and the window" in answer.line) == (2, True), answer.err
