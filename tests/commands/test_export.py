"""`mst export`: the other programs load what was written, and find the same features."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import mst
from commands.calls import call
from mst.config.schema import ModelConfig
from mst.errors import RunFailure
from mst.evaluate.common.features import FeatureSettings
from mst.export import onnx_file, timm_folder
from mst.export.parity import difference
from mst.export.reading import load_exported
from mst.model.backbone_file import save_backbone
from mst.model.build import backbone_spec, build_backbone
from mst.workflows.exporting.settings import ExportSettings

OTHER = "gives other features than this package"


def backbone_file(folder: Path, channels: int = 3) -> Path:
    config = ModelConfig(backbone="vit_tiny_patch16_224", patch_size=8, embed_dim=32, depth=2, num_heads=2)
    spec = backbone_spec(config, image_size=(16, 24), channels=channels)
    path = folder / "backbone.safetensors"
    save_backbone(path, build_backbone(spec, seed=1), {"mean": [0.5] * channels, "std": [0.2] * channels})
    return path


def pictures(folder: Path, count: int = 6) -> Path:
    folder.mkdir()
    draw = np.random.default_rng(0)
    for index in range(count):
        Image.fromarray(draw.integers(0, 255, (40, 50, 3), dtype=np.uint8)).save(folder / f"{index}.png")
    return folder


@pytest.fixture(scope="module")
def onnx_export(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, dict[str, Any]]:
    pytest.importorskip("onnxruntime")
    folder = tmp_path_factory.mktemp("onnx")
    images = pictures(folder / "pictures")
    settings = ExportSettings(
        images=images,
        outputs=("features", "patch_tokens", "importance"),
    )
    found = mst.export_backbone(backbone_file(folder), folder / "out", form="onnx", settings=settings)
    return folder, folder / "out", found


@pytest.mark.parametrize("channels", [1, 3, 5])
def test_timm_loads_the_folder(channels: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = backbone_file(tmp_path, channels)
    answer = call(capsys, "export", "--backbone", path, "--out", tmp_path / "timm", "--json")
    assert answer.status == 0, answer.err
    assert json.loads(answer.out)["difference"] < 1e-6  # another attention kernel on CPUs, the same features
    loaded = timm.create_model(f"local-dir:{tmp_path / 'timm'}", pretrained=True).eval()
    images = torch.randn(2, channels, 16, 24)
    torch.testing.assert_close(loaded(images), mst.load_backbone(path)(images))
    larger = torch.randn(2, channels, 32, 40)
    torch.testing.assert_close(loaded(larger), mst.load_backbone(path)(larger))
    described = loaded.pretrained_cfg
    assert (described["mean"], described["crop_pct"], described["interpolation"]) == (
        (0.5,) * channels if isinstance(described["mean"], tuple) else [0.5] * channels,
        0.875,
        "bicubic",
    )
    kept = json.loads((tmp_path / "timm" / "parity.json").read_text())["measured"][0]
    assert kept["program"].startswith("timm ")
    assert kept["images"].startswith("drawn scenes")
    again = load_exported(tmp_path / "timm")[0]
    torch.testing.assert_close(again(images), loaded(images))


def test_the_table_says_how_to_load(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = backbone_file(tmp_path)
    assert "timm.create_model" in call(capsys, "export", "--backbone", path, "--out", tmp_path / "timm").out
    again = call(capsys, "export", "--backbone", path, "--out", tmp_path / "timm")
    assert again.status == 2
    assert "name a new one" in again.line


@pytest.mark.parametrize("value", [0.5, float("nan"), float("inf")])
def test_other_features_are_refused(value: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def other(folder: Path, images: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"features": torch.full((len(images), 32), value)}

    monkeypatch.setattr(timm_folder, "timm_outputs", other)
    path = backbone_file(tmp_path)
    with pytest.raises(RunFailure, match=OTHER):
        mst.export_backbone(path, tmp_path / "timm")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["backbone.json", "backbone.safetensors"]


def test_a_difference_is_a_share_of_the_largest() -> None:
    found = difference(torch.tensor([1.0, -4.0]), torch.tensor([1.5, -4.0]))
    assert (found.absolute, found.relative) == (0.5, 0.125)


def test_a_backbone_without_numbers_is_not_exported(tmp_path: Path) -> None:
    path = backbone_file(tmp_path)
    weights = load_file(path)
    save_file({**weights, "norm.weight": weights["norm.weight"] * 3e38}, path)
    with pytest.raises(RunFailure, match="the features are not finite numbers, although the weights are"):
        mst.export_backbone(path, tmp_path / "timm")
    assert not (tmp_path / "timm").exists()


@pytest.mark.parametrize("name", ["swin_tiny_patch4_window7_224", "swinv2_tiny_window8_256"])
def test_a_swin_takes_its_own_size_only(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = ModelConfig(backbone=name, embed_dim=8, num_heads=1, depth=2)
    backbone = build_backbone(backbone_spec(config, image_size=(64, 96), channels=3), seed=1).eval()
    save_backbone(tmp_path / "backbone.safetensors", backbone, {})
    answer = call(capsys, "export", "--backbone", tmp_path, "--out", tmp_path / "timm")
    assert f"images of 64x96 only: timm's {name} pads other sizes" in answer.err
    loaded = timm.create_model(f"local-dir:{tmp_path / 'timm'}", pretrained=True).eval()
    assert loaded.pretrained_cfg["fixed_input_size"]
    images = torch.randn(1, 3, 64, 96)
    torch.testing.assert_close(loaded(images), backbone(images))
    with pytest.raises(AssertionError, match="96"):
        loaded(torch.randn(1, 3, 96, 96))
    answer = call(capsys, "export", "--backbone", tmp_path, "--out", tmp_path / "o", "--format", "onnx", "--any-size")
    assert answer.status == 2
    assert "export a file for each size" in answer.line


def test_the_classifier_of_a_fine_tuned_run_is_said_to_stay(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = backbone_file(tmp_path)
    (tmp_path / "classifier.safetensors").touch()
    answer = call(capsys, "export", "--backbone", path.parent, "--out", tmp_path / "timm")
    assert answer.status == 0
    assert f"{tmp_path}/classifier.safetensors is not exported" in answer.err


def test_safetensors_and_torch_export(tmp_path: Path) -> None:
    path = backbone_file(tmp_path)
    images = torch.randn(3, 3, 16, 24)
    expected = mst.load_backbone(path)(images)
    mst.export_backbone(path, tmp_path / "plain", form="safetensors")
    torch.testing.assert_close(load_exported(tmp_path / "plain")[0](images), expected)
    settings = ExportSettings(outputs=("features", "patch_tokens"))
    mst.export_backbone(path, tmp_path / "program", form="torch-export", settings=settings)
    loaded = torch.export.load(tmp_path / "program" / "backbone.pt2").module()
    torch.testing.assert_close(loaded(images)[0], expected, atol=1e-5, rtol=1e-5)
    again = load_exported(tmp_path / "program")[0]
    torch.testing.assert_close(again.tokens(images, importance=False).cls, expected, atol=1e-5, rtol=1e-5)


def test_transformers_loads_the_folder(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    path = backbone_file(tmp_path)
    found = mst.export_backbone(path, tmp_path / "hf", form="hf")
    assert found["parity"][0]["program"] == f"transformers {transformers.__version__}"
    pipe = transformers.pipeline("image-feature-extraction", model=str(tmp_path / "hf"), pool=True)
    image = Image.open(pictures(tmp_path / "pictures", 1) / "0.png")
    assert np.asarray(pipe(image)).shape == (1, 32)
    assert "library_name: transformers" in (tmp_path / "hf" / "README.md").read_text()


def test_an_onnx_file(onnx_export: tuple[Path, Path, dict[str, Any]]) -> None:
    import onnxruntime

    folder, out, found = onnx_export
    rows = {row["type"]: row for row in found["parity"]}
    assert rows["fp32"]["outputs"].keys() == {"features", "patch_tokens", "importance"}
    assert found["parity"][0]["outputs"]["features"]["relative"] < 1e-5
    running = onnxruntime.InferenceSession(out / "backbone.onnx")
    backbone = mst.load_backbone(folder / "backbone.safetensors")
    for count in (1, 3):
        images = torch.randn(count, 3, 16, 24)
        features = running.run(["features"], {"images": images.numpy()})[0]
        torch.testing.assert_close(torch.from_numpy(features), backbone(images), atol=1e-5, rtol=1e-5)


def test_an_onnx_file_is_embedded_and_evaluated(onnx_export: tuple[Path, Path, dict[str, Any]], tmp_path: Path) -> None:
    folder, out, _ = onnx_export
    exact = FeatureSettings(precision="fp32")  # a CPU with bfloat16 would compute in it
    own = mst.embed(folder / "backbone.safetensors", folder / "pictures", settings=exact).features
    torch.testing.assert_close(mst.embed(out, folder / "pictures").features, own, atol=1e-4, rtol=1e-4)
    images = torch.randn(2, 3, 16, 24)
    tokens, expected = (load_exported(out)[0].tokens(images), mst.load_backbone(folder).tokens(images))
    torch.testing.assert_close(tokens.patches, expected.patches, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(tokens.importance, expected.importance, atol=1e-5, rtol=1e-4)


def test_onnx_of_any_size(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    path = backbone_file(tmp_path)
    mst.export_backbone(path, tmp_path / "o", form="onnx", settings=ExportSettings(any_size=True))
    running, backbone = onnx_file.session(tmp_path / "o" / "backbone.onnx"), mst.load_backbone(path)
    for size in ((16, 24), (32, 8)):
        images = torch.randn(2, 3, *size)
        found = onnx_file.run_session(running, images)["features"]
        torch.testing.assert_close(found, backbone(images), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--format", "tflite"), "must be one of timm, hf, onnx, torch-export, safetensors"),
        (("--format", "onnx", "--outputs", "colours"), "must be among features, patch_tokens, importance"),
        (("--any-size",), "is for --format onnx"),
        (("--images", "missing"), "missing"),
    ],
)
def test_what_cannot_be_is_refused(
    words: tuple[str, ...],
    said: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    path = backbone_file(tmp_path)
    answer = call(capsys, "export", "--backbone", path, "--out", "out", *words)
    assert answer.status == 2
    assert said in answer.line
    assert not Path("out").exists()


def test_a_missing_extra_says_how_to_install_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "onnxruntime", None)
    path = backbone_file(tmp_path)
    answer = call(capsys, "export", "--backbone", path, "--out", tmp_path / "o", "--format", "onnx")
    assert answer.status == 2
    assert "pip install 'mst-pretrain[onnx]'" in answer.line


def test_timm_resizes_to_as_many_pixels() -> None:
    for side in range(16, 640):
        share = timm_folder.crop_share((side, side))
        assert math.floor(side / share) == round(side * 256 / 224), side
    assert timm_folder.crop_share((224, 224)) == 0.875
