"""`mst export --model`: what was fine-tuned leaves with its head, and other programs find the same classes."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn

import mst
from commands.calls import call
from mst.config.schema import ModelConfig
from mst.errors import RunFailure
from mst.export import timm_folder
from mst.export.classifier import Head, with_classifier
from mst.export.reading_classifier import load_exported_classifier
from mst.finetune.classifier import Classifier
from mst.model.backbone_file import save_backbone
from mst.model.build import backbone_spec, build_backbone
from mst.workflows.exporting.settings import ExportSettings

CLASSES = ("cat", "dog", "owl")
EXTRAS = {"hf": "transformers", "onnx": "onnxruntime"}


def trained(folder: Path, name: str = "vit_tiny_patch16_224", **sizes: int) -> Path:
    """Write what `mst finetune` leaves: a backbone, a linear layer, names of classes."""
    config = ModelConfig(backbone=name, **({"patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2} | sizes))
    spec = backbone_spec(config, image_size=(64, 64) if "swin" in name else (16, 24), channels=3)
    backbone = build_backbone(spec, seed=1)
    save_backbone(folder / "backbone.safetensors", backbone, {"mean": [0.5] * 3, "std": [0.2] * 3})
    layer = Classifier(backbone, len(CLASSES), seed=3).head
    nn.init.normal_(layer.bias)
    save_file({key: value.detach() for key, value in layer.state_dict().items()}, folder / "classifier.safetensors")
    (folder / "classes.json").write_text(json.dumps(CLASSES))
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, draw = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for index in range(6):
        noise = draw.integers(0, 255, (5, 6, 3), dtype=np.uint8)
        Image.fromarray(noise).resize((50, 40)).save(folder / f"{index}.png")
    return folder


def answers(model: Path, pictures: Path, out: Path, capsys: pytest.CaptureFixture[str]) -> list[dict[str, str]]:
    words = ["predict", "classification", "--model", model, "--data", pictures, "--out", out, "--all-probabilities"]
    answer = call(capsys, *words, "--device", "cpu", "--precision", "fp32", "--no-progress")
    assert answer.status == 0, answer.err
    with out.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("form", ["timm", "hf", "onnx", "torch-export", "safetensors"])
def test_predictions_of_an_export_are_those_of_the_run(
    form: str, run: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip(EXTRAS.get(form, "timm"))
    words = ["export", "--model", run, "--format", form, "--out", tmp_path / "o", "--images", pictures]
    answer = call(capsys, *words)
    assert answer.status == 0, answer.err
    assert "labels the same for 100 %" in " ".join(answer.out.split())
    parity = json.loads((tmp_path / "o" / "parity.json").read_text())
    assert (parity["task"], parity["classes"]) == ("classification", list(CLASSES))
    (row,) = parity["measured"]
    assert row["outputs"]["logits"]["relative"] < 1e-5
    assert (row["count"], row["same_label"]) == (6, 100.0)
    own, other = (
        answers(model, pictures, tmp_path / f"{n}.csv", capsys) for n, model in enumerate((run, tmp_path / "o"))
    )
    assert len(own) == 6
    for mine, found in zip(own, other, strict=True):
        assert (mine["path"], mine["class"]) == (found["path"], found["class"])
        for name in CLASSES:
            key = f"probability of {name}"
            assert float(mine[key]) == pytest.approx(float(found[key]), abs=1e-5)


def test_other_programs_load_it_with_their_own_lines(run: Path, pictures: Path, tmp_path: Path) -> None:
    mst.export_model(run, tmp_path / "timm", settings=ExportSettings(images=pictures))
    loaded = timm.create_model(f"local-dir:{tmp_path / 'timm'}", pretrained=True).eval()
    assert (loaded.num_classes, tuple(loaded.pretrained_cfg["label_names"])) == (3, CLASSES)
    assert loaded.pretrained_cfg["classifier"] == "head"
    images = torch.randn(2, 3, 16, 24)
    exported = load_exported_classifier(tmp_path / "timm")[0]
    torch.testing.assert_close(loaded(images), exported(images))
    features = mst.load_backbone(run / "backbone.safetensors")(images)
    torch.testing.assert_close(mst.embed(tmp_path / "timm", pictures).features.shape, torch.Size([6, 32]))
    torch.testing.assert_close(exported.backbone(images), features)


def test_a_pipeline_of_transformers_gives_the_labels(run: Path, pictures: Path, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    mst.export_model(run, tmp_path / "hf", form="hf", settings=ExportSettings(images=pictures))
    model = transformers.AutoModelForImageClassification.from_pretrained(tmp_path / "hf", local_files_only=True)
    assert model.config.id2label == dict(enumerate(CLASSES))
    assert model.config.label2id == {name: number for number, name in enumerate(CLASSES)}
    pipe = transformers.pipeline("image-classification", model=str(tmp_path / "hf"))
    found = pipe(Image.open(pictures / "0.png"), top_k=3)
    assert {row["label"] for row in found} == set(CLASSES)
    card = (tmp_path / "hf" / "README.md").read_text()
    assert "pipeline_tag: image-classification" in card
    assert "The class is ViTForImageClassification; its logits are of the feature that was evaluated." in card


@pytest.mark.slow
def test_a_graph_gives_chosen_outputs(run: Path, pictures: Path, tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    settings = ExportSettings(images=pictures, outputs=("probabilities", "features"), any_size=True)
    mst.export_model(run, tmp_path / "o", form="onnx", settings=settings)
    running = onnxruntime.InferenceSession(tmp_path / "o" / "classifier.onnx")
    assert [output.name for output in running.get_outputs()] == ["probabilities", "features"]
    assert json.loads(running.get_modelmeta().custom_metadata_map["mst"])["classes"] == list(CLASSES)
    images = np.zeros((1, 3, 32, 16), dtype=np.float32)
    assert running.run(None, {"images": images})[0].sum() == pytest.approx(1, abs=1e-6)
    own = mst.embed(run / "backbone.safetensors", pictures).features
    torch.testing.assert_close(mst.embed(tmp_path / "o", pictures).features, own, atol=2e-2, rtol=2e-2)
    scores = load_exported_classifier(tmp_path / "o")[0](torch.randn(2, 3, 16, 24))
    torch.testing.assert_close(scores.softmax(-1), scores.exp(), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("swin_tiny_patch4_window7_224", {"patch_size": 32, "embed_dim": 8, "num_heads": 1}),
        ("deit_tiny_distilled_patch16_224", {}),
        ("vit_base_patch16_rope_reg1_gap_256", {}),
    ],
)
def test_heads_of_other_families(name: str, sizes: dict[str, int], tmp_path: Path) -> None:
    found = mst.export_model(trained(tmp_path, name, **sizes), tmp_path / "o")
    assert found["difference"] < 1e-5
    backbone, images = mst.load_backbone(tmp_path / "backbone.safetensors"), torch.randn(2, 3, 64, 64)
    if "swin" not in name:
        images = images[..., :16, :24]
    layer = nn.Linear(backbone.embed_dim, 3)
    layer.load_state_dict(load_file(tmp_path / "classifier.safetensors"))
    exported = load_exported_classifier(tmp_path / "o")[0]
    torch.testing.assert_close(exported(images), layer(backbone(images)))
    assert with_classifier(backbone, Head(layer, CLASSES))[1] == ("head.fc" if "swin" in name else "head")


def test_other_classes_are_refused(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def other(folder: Path, images: torch.Tensor) -> dict[str, Any]:
        return {"features": torch.full((len(images), 3), 0.5)}

    monkeypatch.setattr(timm_folder, "timm_outputs", other)
    with pytest.raises(RunFailure, match="gives other logits than this package"):
        mst.export_model(run, tmp_path / "timm")
    assert not list(tmp_path.iterdir())


def test_mistakes_are_one_line(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plain = tmp_path / "plain"
    plain.mkdir()
    (plain / "backbone.safetensors").write_bytes((run / "backbone.safetensors").read_bytes())
    (plain / "backbone.json").write_bytes((run / "backbone.json").read_bytes())
    mst.export_backbone(plain, tmp_path / "exported")
    mst.export_model(run, tmp_path / "damaged")
    description = json.loads((tmp_path / "damaged" / "model.json").read_text())
    (tmp_path / "damaged" / "model.json").write_text(json.dumps({**description, "classes": ["cat"]}))
    out = ["--out", tmp_path / "o"]
    predict = ["predict", "classification", "--data", tmp_path, "--out", tmp_path / "o.csv"]
    for words, said in (
        (["export", "--model", plain, *out], "holds no trained network with a head"),
        (["export", "--model", tmp_path / "exported", *out], "is an export already"),
        (["export", "--model", run, "--backbone", run, *out], "give one of --model and --backbone"),
        (["export", *out], "--backbone or --model is missing"),
        (["export", "--model", run, *out, "--outputs", "colours", "--format", "onnx"], "must be among logits"),
        (["export", "--model", run, *out, "--outputs", "features", "--format", "onnx"], "give logits or probabilities"),
        (["export", "--model", run, *out, "--outputs", "logits"], "holds the whole network"),
        ([*predict, "--model", tmp_path / "exported"], "holds a backbone without a classifier"),
        ([*predict, "--model", tmp_path / "damaged"], "does not fit its description"),
    ):
        answer = call(capsys, *words)
        assert answer.status == 2, (said, answer.err)
        assert said in answer.line, answer.line
    assert not (tmp_path / "o").exists()
