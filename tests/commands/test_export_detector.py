"""`mst export --model` of detectors: other programs find what torchvision finds, and `mst predict` reads them back."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import mst
from commands.calls import call
from mst.evaluate.common.pyramid import Pyramid
from mst.evaluate.detection.detector import DetectorShape, build_detector
from mst.evaluate.detection.file import DetectorDescription, load_detector, save_detector
from mst.export.detector import DetectorOutputs, Placing, _apart
from mst.model.backbone import BackboneSpec
from mst.model.build import build_backbone
from mst.workflows.exporting.settings import ExportSettings

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
SPEC = BackboneSpec("vit_tiny_patch16_224", (64, 64), 3, 16, 32, 2, 2)
SHAPE = DetectorShape(short_sides=(64,), long_side=96, channels=8, head_dim=16, anchor_size=8)
CLASSES, MEAN, STD = ("box", "disc", "ring"), (0.5, 0.4, 0.6), (0.25,) * 3


def trained(folder: Path, *, masks: bool = True) -> Path:
    """Save a detector whose weights are drawn, and large enough that classes and boxes differ."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(3)
        pyramid = Pyramid(build_backbone(SPEC, seed=1), channels=8, frozen=True, compute=torch.float32)
        detector = build_detector(pyramid, len(CLASSES), SHAPE, mean=MEAN, std=STD, masks=masks).eval()
    with torch.no_grad():
        for weight in [*detector.roi_heads.box_predictor.parameters(), *detector.rpn.head.parameters()]:
            weight.mul_(6)
    description = DetectorDescription(SPEC, SHAPE, CLASSES, (1, 2, 7), MEAN, STD, masks)
    save_detector(folder, detector, description)
    return folder


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, draw = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for index in range(2):
        noise = draw.integers(0, 255, (5, 6, 3), dtype=np.uint8)
        Image.fromarray(noise).resize((120, 90 + 2 * index)).save(folder / f"{index}.png")
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("detector"))


def objects(model: Path, pictures: Path, out: Path, capsys: pytest.CaptureFixture[str]) -> list[dict[str, object]]:
    words = ["predict", "detection", "--model", model, "--data", pictures, "--out", out, "--picture-limit", "0"]
    answer = call(capsys, *words, "--device", "cpu", "--precision", "fp32", "--no-progress")
    assert answer.status == 0, answer.err
    found: list[dict[str, object]] = json.loads((out / "predictions.json").read_text())["annotations"]
    return found


@pytest.mark.parametrize("masks", [True, False])
@torch.no_grad()
def test_the_graph_finds_what_torchvision_finds(masks: bool, tmp_path: Path) -> None:
    detector, description = load_detector(trained(tmp_path, masks=masks))
    placing = Placing((64, 96), 64, 96, MEAN, STD)
    pixels = torch.rand(3, 70, 90, generator=torch.Generator().manual_seed(0))
    images, size = placing(pixels)
    resized, _ = detector.transform([pixels])
    assert resized.image_sizes == [size]
    torch.testing.assert_close(images, resized.tensors)
    (wanted,) = detector([pixels])
    found = dict(
        zip(
            ("boxes", "scores", "labels", "masks"),
            DetectorOutputs(detector, (64, 96))(images, torch.tensor(size)),
            strict=False,
        )
    )
    count = int((found["scores"] > 0).sum())
    assert count == len(wanted["boxes"]) > 0
    assert torch.equal(found["labels"][:count], wanted["labels"])
    torch.testing.assert_close(found["scores"][:count], wanted["scores"])
    factors = torch.tensor([90 / size[1], 70 / size[0]]).repeat(2)
    torch.testing.assert_close(found["boxes"][:count] * factors, wanted["boxes"])
    assert ("masks" in found) == masks
    assert description.masks == masks


@pytest.mark.slow
@pytest.mark.parametrize("form", ["safetensors", "onnx", "torch-export"])
def test_predictions_of_an_export_are_those_of_the_detector(
    form: str, model: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if form == "onnx":
        pytest.importorskip("onnxruntime")
    words = ["export", "--model", model, "--format", form, "--out", tmp_path / "o", "--images", pictures]
    answer = call(capsys, *words)
    assert answer.status == 0, answer.err
    parity = json.loads((tmp_path / "o" / "parity.json").read_text())
    assert (parity["task"], parity["classes"], parity["canvas"]) == ("detection", list(CLASSES), [64, 96])
    (row,) = parity["measured"]
    assert row["outputs"].keys() == {"boxes", "scores", "masks"}
    assert max(one["relative"] for one in row["outputs"].values()) < 1e-5
    assert (row["objects"] > 0, row["same_objects"]) == (True, 100.0)
    own = objects(model, pictures, tmp_path / "own", capsys)
    other = objects(tmp_path / "o", pictures, tmp_path / "other", capsys)
    assert len(own) == len(other) == row["objects"]
    for mine, found in zip(own, other, strict=True):
        assert mine["category_id"] == found["category_id"]
        assert mine["bbox"] == pytest.approx(found["bbox"], abs=1e-2)


def test_mistakes_are_one_line(model: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = ExportSettings(images=pictures)
    mst.export_model(model, tmp_path / "exported", form="safetensors", settings=settings)
    export = ["export", "--model", model, "--out", tmp_path / "o", "--images", pictures, "--format"]
    (tmp_path / "broken.onnx").write_bytes(b"no graph")
    for words, said in (
        ([*export, "timm"], "timm has no detector of this backbone and pyramid"),
        ([*export, "onnx", "--outputs", "boxes"], "--outputs is not for detectors"),
        ([*export, "onnx", "--any-size"], "--any-size is not for detectors"),
        (["export", "--model", tmp_path / "exported", "--out", tmp_path / "o"], "is an export already"),
        (
            ["predict", "detection", "--model", tmp_path / "broken.onnx", "--data", pictures, "--out", tmp_path / "p"],
            "cannot read",
        ),
    ):
        answer = call(capsys, *words)
        assert answer.status == 2, (said, answer.err)
        assert said in answer.line, answer.line


def test_one_box_that_is_left_is_enough_for_torch_export() -> None:
    """torchvision's nms promises two or more to torch.export, and the program stopped where there was one."""

    class Apart(nn.Module):
        def forward(self, boxes: Tensor, scores: Tensor) -> Tensor:
            return _apart(boxes, scores, 0.5)

    boxes, scores = torch.rand(9, 4).cumsum(1), torch.rand(9)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torchvision, about a name of torch
        program = torch.export.export(Apart(), (boxes, scores)).module()
    same = boxes[:1].expand(9, 4).contiguous()
    for some in (boxes, same):
        assert torch.equal(program(some, scores), _apart(some, scores, 0.5))
    assert _apart(same, scores, 0.5).nonzero().flatten().tolist() == [int(scores.argmax())]
