from __future__ import annotations

import json
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

from mst.config.schema import ModelConfig
from mst.errors import CheckpointError
from mst.model.backbone import Backbone
from mst.model.backbone_file import load_backbone, save_backbone
from mst.model.build import backbone_spec, build_backbone, timm_arguments

METADATA = {"mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25], "recipe": "debug"}


@pytest.fixture
def backbone() -> Backbone:
    config = ModelConfig(backbone="deit_tiny_patch16_224", patch_size=8, embed_dim=32, depth=1, num_heads=2)
    return build_backbone(backbone_spec(config, image_size=(16, 24), channels=3), seed=3).eval()


@pytest.fixture
def saved(backbone: Backbone, tmp_path: Path) -> Path:
    save_backbone(tmp_path / "backbone.safetensors", backbone, METADATA)
    return tmp_path / "backbone.safetensors"


def test_round_trip(backbone: Backbone, saved: Path) -> None:
    images = torch.randn(2, 3, 16, 24)
    for path in (saved, saved.parent, str(saved)):
        loaded = load_backbone(path)
        assert loaded.spec == backbone.spec
        assert loaded.metadata == METADATA
        assert not loaded.training
        assert torch.equal(loaded(images), backbone(images))


def test_weights_are_timms(backbone: Backbone, saved: Path) -> None:
    model = timm.create_model(backbone.spec.name, **timm_arguments(backbone.spec)).eval()
    model.load_state_dict(load_file(saved), strict=True)
    images = torch.randn(1, 3, 16, 24)
    torch.testing.assert_close(model(images), backbone(images))


def test_nothing_else_is_left_in_the_folder(saved: Path) -> None:
    assert sorted(p.name for p in saved.parent.iterdir()) == ["backbone.json", "backbone.safetensors"]


def refuse(path: Path, said: str) -> None:
    with pytest.raises(CheckpointError, match=said) as caught:
        load_backbone(path)
    assert "\n" not in str(caught.value)


def test_missing(tmp_path: Path, saved: Path) -> None:
    refuse(tmp_path / "nothing.safetensors", "does not exist")
    saved.with_suffix(".json").unlink()
    refuse(saved, "backbone.json does not exist")


def test_truncated(saved: Path) -> None:
    saved.write_bytes(saved.read_bytes()[:1000])
    refuse(saved, "cannot read .*backbone.safetensors")


@pytest.mark.parametrize("text", ["{", "{}", "[]", '{"format": 1, "spec": {}, "metadata": {}}'])
def test_damaged_description(saved: Path, text: str) -> None:
    saved.with_suffix(".json").write_text(text)
    refuse(saved, "cannot read|not a backbone description")


def test_unknown_format(saved: Path) -> None:
    values = json.loads(saved.with_suffix(".json").read_text())
    saved.with_suffix(".json").write_text(json.dumps({**values, "format": 9}))
    refuse(saved, "has format 9, this version reads 1")


def test_another_architecture(saved: Path) -> None:
    values = json.loads(saved.with_suffix(".json").read_text())
    values["spec"]["depth"] = 2
    saved.with_suffix(".json").write_text(json.dumps(values))
    refuse(saved, r"does not fit its description: of \d+ tensors, 12 missing \(first blocks.1")
    values["spec"].update(depth=1, embed_dim=48)
    saved.with_suffix(".json").write_text(json.dumps(values))
    refuse(saved, "of another shape")
    for wrong in ({"depth": -1}, {"channels": 0}, {"patch_size": 8.5}, {"name": 3}, {"image_size": [0, 32]}):
        saved.with_suffix(".json").write_text(json.dumps({**values, "spec": {**values["spec"], **wrong}}))
        refuse(saved, r"backbone\.json: not a backbone description")


def test_one_tensor_too_many(saved: Path) -> None:
    save_file({**load_file(saved), "extra": torch.zeros(1)}, saved)
    refuse(saved, r"1 unknown \(first extra\)")
