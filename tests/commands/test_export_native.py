"""`mst export --format hf` in transformers' own classes: the same numbers there, and here when they are read back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import mst
from commands.calls import call
from mst.config.schema import ModelConfig
from mst.errors import CheckpointError
from mst.export import hugging_face
from mst.export.classifier import Head
from mst.export.hugging_face import write_hugging_face
from mst.export.native.names import NotNative, native
from mst.export.network import expected
from mst.export.reading import load_weights
from mst.model.backbone import Backbone
from mst.model.backbone_file import describe, save_backbone
from mst.model.build import backbone_spec, build_backbone
from mst.workflows.exporting.settings import ExportSettings

transformers = pytest.importorskip("transformers")
FLAT = {"patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}
SWIN = {"embed_dim": 8, "depth": 2, "num_heads": 1}
SQUARE = (32, 32)


class Case(NamedTuple):
    """A network, and transformers' own for it."""

    name: str
    sizes: dict[str, int]
    size: tuple[int, int]
    channels: int
    model: str
    pooling: str


NATIVE = [
    Case(*values)
    for values in [
        ("vit_tiny_patch16_224", FLAT, (16, 24), 3, "ViTModel", "pooler_output"),
        ("deit_tiny_patch16_224", FLAT, SQUARE, 1, "ViTModel", "pooler_output"),
        ("deit_tiny_distilled_patch16_224", FLAT, SQUARE, 3, "DeiTModel", "both tokens"),
        ("deit3_small_patch16_224", FLAT, SQUARE, 3, "Dinov2Model", "pooler_output"),
        ("vit_small_patch14_dinov2", FLAT, SQUARE, 6, "Dinov2Model", "pooler_output"),
        ("vit_small_patch14_reg4_dinov2", FLAT, SQUARE, 3, "Dinov2WithRegistersModel", "pooler_output"),
        ("vit_small_patch16_dinov3", FLAT, SQUARE, 3, "DINOv3ViTModel", "patch tokens"),
        ("vit_small_patch16_dinov3_qkvb", FLAT, (16, 24), 3, "DINOv3ViTModel", "patch tokens"),
        ("vit_small_plus_patch16_dinov3", FLAT, SQUARE, 3, "DINOv3ViTModel", "patch tokens"),
        ("swin_tiny_patch4_window7_224", SWIN, (224, 224), 3, "SwinModel", "pooler_output"),
        ("swinv2_tiny_window8_256", SWIN, (256, 256), 3, "Swinv2Model", "pooler_output"),
    ]
]
WRAPPED = [
    ("vit_small_patch14_dinov2", FLAT, (16, 24), "its images are 16x24"),
    ("swin_tiny_patch4_window7_224", SWIN, (64, 64), "its windows have sides of"),
    ("vit_base_patch16_rope_reg1_gap_256", FLAT, SQUARE, "rotary embedding is not DINOv3's"),
    ("vit_base_patch16_clip_224", FLAT, SQUARE, "a norm before its blocks"),
    ("vit_base_patch16_siglip_224", FLAT, SQUARE, "it has no CLS token"),
]
CLASSES = ("cat", "dog", "owl")


def drawn(name: str, sizes: dict[str, int], size: tuple[int, int], channels: int = 3) -> Backbone:
    """Return a backbone with all weights drawn: no layer scale, bias or position that is zero hides an error."""
    spec = backbone_spec(ModelConfig(backbone=name, **sizes), image_size=size, channels=channels)
    backbone, draws = build_backbone(spec, seed=1).eval(), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in backbone.model.parameters():
            weight.add_(torch.randn(weight.shape, generator=draws) * 0.05)
    return backbone


def close(found: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("case", NATIVE, ids=lambda case: f"{case.name}-{case.size[0]}x{case.size[1]}")
@torch.no_grad()
def test_own_classes_give_the_same_numbers(case: Case, tmp_path: Path) -> None:
    backbone = drawn(case.name, case.sizes, case.size, case.channels)
    images = torch.randn(2, case.channels, *case.size)
    wanted = expected(backbone, images, ("features", "patch_tokens"))
    written = write_hugging_face(backbone, tmp_path, images, wanted)
    assert written.reason == ""
    assert written.native is not None
    assert (written.to_json(), written.native.pooling) == ({"class": case.model}, case.pooling)
    for key, tensor in wanted.items():
        close(written.outputs[key], tensor)
    loaded = transformers.AutoModel.from_pretrained(tmp_path, local_files_only=True)
    assert type(loaded).__name__ == case.model
    (tmp_path / "model.json").write_text(describe(backbone.spec, {}, {"transformers": written.native.kind}))
    again, head = load_weights(tmp_path / "model.safetensors")
    assert head is None
    for key, tensor in backbone.timm_state_dict().items():
        assert torch.equal(again.timm_state_dict()[key], tensor), key


@pytest.mark.parametrize("case", NATIVE, ids=lambda case: f"{case.name}-{case.size[0]}x{case.size[1]}")
@torch.no_grad()
def test_classifiers_in_own_classes(case: Case, tmp_path: Path) -> None:
    backbone = drawn(case.name, case.sizes, case.size, case.channels)
    head = Head(nn.Linear(backbone.embed_dim, 3), CLASSES)
    images = torch.randn(2, case.channels, *case.size)
    wanted = {"logits": head.layer(backbone(images))}
    written = write_hugging_face(backbone, tmp_path, images, wanted, head)
    close(written.outputs["logits"], wanted["logits"])
    if "dinov3" in case.name:
        assert "has no classifier for DINOv3ViTModel" in written.reason
        return
    assert written.native is not None
    said = {"transformers": written.native.kind, "classes": list(CLASSES)}
    (tmp_path / "model.json").write_text(describe(backbone.spec, {}, said))
    again, found = load_weights(tmp_path / "model.safetensors")
    assert found is not None
    assert found.classes == CLASSES
    assert torch.equal(found.layer.weight, head.layer.weight)
    close(again(images), backbone(images))


@pytest.mark.parametrize(("name", "sizes", "size", "reason"), WRAPPED)
def test_others_say_why_they_are_wrapped(name: str, sizes: dict[str, int], size: tuple[int, int], reason: str) -> None:
    with pytest.raises(NotNative, match=reason):
        native(drawn(name, sizes, size))


def test_numbers_that_differ_lead_to_the_wrapper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    backbone, images = drawn("vit_tiny_patch16_224", FLAT, SQUARE), torch.randn(2, 3, *SQUARE)
    wanted = expected(backbone, images, ("features",))
    real = hugging_face.native_outputs

    def other(*given: Any) -> dict[str, Tensor]:
        return {key: tensor + 1 for key, tensor in real(*given).items()}

    monkeypatch.setattr(hugging_face, "native_outputs", other)
    written = write_hugging_face(backbone, tmp_path, images, wanted)
    assert written.native is None
    assert "ViTModel gives other features" in written.reason
    close(written.outputs["features"], wanted["features"])
    assert not (tmp_path / "preprocessor_config.json").exists()


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, dict[str, Any]]:
    """Return a folder with a backbone and pictures, its export, and what was told."""
    folder = tmp_path_factory.mktemp("native")
    backbone = drawn("vit_tiny_patch16_224", FLAT, SQUARE)
    save_backbone(folder / "backbone.safetensors", backbone, {"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.25, 0.3]})
    draw = np.random.default_rng(0)
    (folder / "pictures").mkdir()
    for index in range(4):
        noise = draw.integers(0, 255, (5, 6, 3), dtype=np.uint8)
        Image.fromarray(noise).resize((70, 70)).save(folder / "pictures" / f"{index}.png")
    settings = ExportSettings(images=folder / "pictures")
    found = mst.export_backbone(folder, folder / "hf", form="hf", settings=settings)
    return folder, folder / "hf", found


def test_processor_pipeline_and_card(exported: tuple[Path, Path, dict[str, Any]]) -> None:
    folder, out, found = exported
    assert "transformers reads it by its class ViTModel" in found["remarks"]
    (row,) = json.loads((out / "parity.json").read_text())["measured"]
    assert row["outputs"].keys() == {"features", "patch_tokens"}
    assert row["processor"]["largest"] < 0.01  # square images are cut in the same place
    picture = Image.open(folder / "pictures" / "0.png")
    pipe = transformers.pipeline("image-feature-extraction", model=str(out), pool=True)
    own = mst.load_backbone(folder / "backbone.safetensors")
    close(torch.tensor(pipe(picture)), own(own.transform(picture)[None]))
    card = (out / "README.md").read_text()
    assert "`pooler_output` is the feature that was evaluated: the CLS token after the final norm" in card
    assert "`last_hidden_state` holds 1 token before the patch tokens" in card
    assert "grey" not in card.split("pixels differ from those of the evaluation by")[0]
    features = mst.embed(folder / "backbone.safetensors", folder / "pictures").features
    assert torch.equal(mst.embed(out, folder / "pictures").features, features)


def test_damaged_exports_are_one_line(
    exported: tuple[Path, Path, dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = exported[1]
    weights = load_file(out / "model.safetensors")
    name = "encoder.layer.0.attention.attention.query.weight"
    for label, changed, said in (
        ("missing", {key: value for key, value in weights.items() if key != name}, name),
        ("shape", {**weights, name: torch.zeros(3, 32)}, "has shape"),
        ("nan", {**weights, name: weights[name] * torch.nan}, "holds nan"),
    ):
        folder = tmp_path / label
        folder.mkdir()
        save_file(changed, folder / "model.safetensors")
        (folder / "parity.json").write_text("{}")
        (folder / "model.json").write_text((out / "model.json").read_text())
        answer = call(
            capsys, "embed", "--backbone", folder, "--data", exported[0] / "pictures", "--out", tmp_path / "f.npz"
        )
        assert answer.status == 2, answer.err
        assert said.lower() in answer.line.lower(), answer.line
    text = (out / "model.json").read_text().replace('"transformers": "vit"', '"transformers": "bert"')
    (folder / "model.json").write_text(text)
    with pytest.raises(CheckpointError, match="transformers' kind bert"):
        load_weights(folder / "model.safetensors")
