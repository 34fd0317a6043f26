"""`mst export`: timm itself loads what was written, and finds the same features."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

import mst
from commands.calls import call
from mst.config.schema import ModelConfig
from mst.errors import RunFailure
from mst.export import timm_folder
from mst.model.backbone_file import save_backbone
from mst.model.build import backbone_spec, build_backbone


def backbone_file(folder: Path, channels: int = 3) -> Path:
    config = ModelConfig(backbone="vit_tiny_patch16_224", patch_size=8, embed_dim=32, depth=2, num_heads=2)
    spec = backbone_spec(config, image_size=(16, 24), channels=channels)
    path = folder / "backbone.safetensors"
    save_backbone(path, build_backbone(spec, seed=1), {"mean": [0.5] * channels, "std": [0.2] * channels})
    return path


@pytest.mark.parametrize("channels", [1, 3, 5])
def test_timm_loads_the_folder(channels: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = backbone_file(tmp_path, channels)
    answer = call(capsys, "export", "--backbone", path, "--out", tmp_path / "timm", "--json")
    assert answer.status == 0, answer.err
    assert json.loads(answer.out)["difference"] < 1e-6  # another attention kernel on CPUs, the same features
    loaded = timm.create_model(f"local-dir:{tmp_path / 'timm'}", pretrained=True).eval()
    images = torch.randn(2, channels, 16, 24)
    torch.testing.assert_close(loaded(images), mst.load_backbone(path)(images))
    assert loaded.pretrained_cfg["mean"] == [0.5] * channels


def test_the_table_says_how_to_load(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = backbone_file(tmp_path)
    assert "timm.create_model" in call(capsys, "export", "--backbone", path, "--out", tmp_path / "timm").out
    again = call(capsys, "export", "--backbone", path, "--out", tmp_path / "timm")
    assert again.status == 2
    assert "name a new one" in again.line


def test_other_features_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timm_folder, "relative_difference", lambda *_: 0.5)
    with pytest.raises(RunFailure, match="gives other features"):
        mst.export_backbone(backbone_file(tmp_path), tmp_path / "timm")


@pytest.mark.parametrize("difference", [0.5, float("nan"), float("inf")])
def test_no_number_is_no_agreement(difference: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timm_folder, "relative_difference", lambda *_: difference)
    with pytest.raises(RunFailure, match="gives other features"):
        mst.export_backbone(backbone_file(tmp_path), tmp_path / "timm")


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


def test_the_classifier_of_a_fine_tuned_run_is_said_to_stay(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = backbone_file(tmp_path)
    (tmp_path / "classifier.safetensors").touch()
    answer = call(capsys, "export", "--backbone", path.parent, "--out", tmp_path / "timm")
    assert answer.status == 0
    assert f"{tmp_path}/classifier.safetensors is not exported" in answer.err
