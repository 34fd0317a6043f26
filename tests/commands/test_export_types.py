"""`mst export --format onnx --types fp16,int8`: what each file is worth is measured, kept, and evaluated as usual."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import mst
from commands.calls import call
from mst.config.schema import ModelConfig
from mst.errors import RunFailure
from mst.evaluate.classification.knn import KnnProtocol
from mst.evaluate.classification.linear_probe import LinearProtocol
from mst.evaluate.common.features import FeatureSettings
from mst.export import onnx_file
from mst.export.parity import Images, measure
from mst.export.reading import load_exported
from mst.model.backbone_file import save_backbone
from mst.model.build import backbone_spec, build_backbone
from mst.workflows.exporting.calibration import calibration_images
from mst.workflows.exporting.onnx_settings import OnnxSettings
from mst.workflows.exporting.settings import ExportSettings
from mst.workflows.subject import load_subject

SIZE = (16, 24)


def random_backbone(folder: Path, channels: int = 3, name: str = "vit_tiny_patch16_224") -> Path:
    """Write a tiny backbone all of whose weights are drawn: no bias is zero, no norm is one."""
    config = ModelConfig(backbone=name, patch_size=8, embed_dim=32, depth=2, num_heads=2)
    backbone = build_backbone(backbone_spec(config, image_size=SIZE, channels=channels), seed=1)
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for tensor in backbone.model.parameters():
            spread = 0.1 if tensor.ndim < 2 else tensor[0].numel() ** -0.5
            tensor.add_(spread * torch.randn(tensor.shape, generator=draw))
    path = folder / "backbone.safetensors"
    save_backbone(path, backbone, {"mean": [0.5] * channels, "std": [0.2] * channels})
    return path


def labelled(folder: Path) -> Path:
    """Write two classes of images, of another brightness."""
    draw = np.random.default_rng(0)
    for part, count in (("train", 8), ("val", 4)):
        for name, dark in (("dark", 0), ("light", 100)):
            (folder / part / name).mkdir(parents=True)
            for index in range(count):
                pixels = draw.integers(dark, dark + 156, (20, 30, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / part / name / f"{index}.png")
    return folder


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    pytest.importorskip("onnxruntime")
    folder = tmp_path_factory.mktemp("types")
    images = labelled(folder / "images")
    asked = OnnxSettings(("fp32", "fp16", "int8"), images / "train", calibration_images=12, knn=images)
    settings = ExportSettings(images / "val", ("features", "patch_tokens", "importance"), onnx=asked)
    return folder, mst.export_backbone(random_backbone(folder), folder / "out", form="onnx", settings=settings)


def test_each_file_says_what_it_is_worth(exported: tuple[Path, dict[str, Any]]) -> None:
    folder, found = exported
    rows = {row["type"]: row for row in json.loads((folder / "out" / "parity.json").read_text())["measured"]}
    assert list(rows) == ["fp32", "fp16", "int8"]
    assert [row["file"] for row in rows.values()] == ["backbone.onnx", "backbone.fp16.onnx", "backbone.int8.onnx"]
    worst = [row["outputs"]["features"]["relative"] for row in rows.values()]
    assert worst[0] < 1e-5 < worst[1] < 5e-3 < worst[2] < 0.2
    for row in rows.values():
        assert row["outputs"].keys() == {"features", "patch_tokens", "importance"}
        assert row["outputs"]["features"]["cosine"] >= row["outputs"]["features"]["least_cosine"] > 0.95
        assert row["bytes"] == (folder / "out" / row["file"]).stat().st_size
        speed = row["speed"]
        assert speed["slowest"] <= speed["images_per_second"] <= speed["fastest"]
        assert (speed["threads"], speed["passes"] >= 7) == (1, True)
        assert row["knn"]["agreement"] >= 50
        assert (row["knn"]["train_images"], row["knn"]["val_images"], row["knn"]["k"]) == (16, 8, 16)
    assert rows["fp32"]["knn"]["agreement"] == 100
    assert rows["int8"]["calibration"] == {
        "images": str(folder / "images" / "train"),
        "used": 12,
        "unreadable": 0,
        "seed": 0,
    }
    assert found["use"].endswith('out/backbone.onnx")')


def test_products_have_8_bits_and_the_rest_32(exported: tuple[Path, dict[str, Any]]) -> None:
    import onnx

    graph = onnx.load(exported[0] / "out" / "backbone.int8.onnx").graph
    made_by = {name: node for node in graph.node for name in node.output}
    weights = {tensor.name: tensor.data_type for tensor in graph.initializer}
    eight = [
        node
        for node in graph.node
        if node.op_type in {"MatMul", "Conv"}
        and "DequantizeLinear" in {made_by[name].op_type for name in node.input[:2] if name in made_by}
    ]
    assert len(eight) == 1 + 2 * 4  # the patches; qkv, proj, fc1 and fc2 of each block
    for node in eight:
        stored = made_by[node.input[1]].input[0]
        assert weights[stored] == onnx.TensorProto.INT8
    for node in graph.node:
        if node.op_type in {"LayerNormalization", "Softmax", "Erf"}:
            assert not any(made_by[name].op_type == "DequantizeLinear" for name in node.input if name in made_by)


def test_half_keeps_inputs_outputs_and_norms_in_float32(exported: tuple[Path, dict[str, Any]]) -> None:
    import onnx

    model = onnx.load(exported[0] / "out" / "backbone.fp16.onnx")
    onnx.checker.check_model(model, full_check=True)
    ends = [*model.graph.input, *model.graph.output]
    assert {value.type.tensor_type.elem_type for value in ends} == {onnx.TensorProto.FLOAT}
    large = [tensor for tensor in model.graph.initializer if np.prod(tensor.dims) > 100]
    assert {tensor.data_type for tensor in large} == {onnx.TensorProto.FLOAT16}


@pytest.mark.parametrize("kind", ["fp16", "int8"])
def test_a_file_is_embedded_and_evaluated(kind: str, exported: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    folder, images = exported[0], exported[0] / "images"
    file, exact = folder / "out" / f"backbone.{kind}.onnx", FeatureSettings(precision="fp32")
    found, own = (mst.embed(each, images / "val", settings=exact).features for each in (file, folder))
    assert torch.nn.functional.cosine_similarity(found, own).min() > 0.97
    assert not torch.equal(found, own)
    protocol = KnnProtocol((8,), 8)
    knn, expected = (mst.evaluate_knn(each, images, protocol=protocol, out=tmp_path) for each in (file, folder))
    assert abs(knn.metrics["top1"] - expected.metrics["top1"]) <= 25
    row = json.loads((tmp_path / "results.jsonl").read_text().splitlines()[0])
    assert (row["backbone"], row["protocol"]["precision"]) == (str(file), kind)


def test_a_folder_without_fp32_is_read_at_its_most_bits(exported: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    for name in ("parity.json", "backbone.fp16.onnx", "backbone.int8.onnx"):
        shutil.copy(exported[0] / "out" / name, tmp_path / name)
    backbone, file = load_exported(tmp_path)
    assert (file.name, backbone.computed_in) == ("backbone.fp16.onnx", "fp16")


def test_features_alone_are_enough_for_labelled_evaluations(
    exported: tuple[Path, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, images = exported[0], exported[0] / "images"
    for kind in ("fp16", "int8"):
        backbone = load_exported(folder / "out" / f"backbone.{kind}.onnx")[0]
        monkeypatch.setattr(backbone, "_names", ("features",))
        quick = LinearProtocol(lrs=(0.1,), epochs=3)
        linear = mst.evaluate_linear(backbone, images, protocol=quick, out=tmp_path)
        assert linear.protocol["blocks"] == 1
        assert 0 <= linear.metrics["top1"] <= 100
        knn = mst.evaluate_knn(backbone, images, protocol=KnnProtocol((8,), 8), out=tmp_path)
        assert linear.protocol["precision"] == knn.protocol["precision"] == kind


@pytest.mark.slow
def test_a_rotary_network_is_the_same_at_every_size(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    path = random_backbone(tmp_path, name="vit_small_patch16_dinov3")
    settings = ExportSettings(outputs=("features", "patch_tokens", "importance"), any_size=True)
    found = mst.export_backbone(path, tmp_path / "out", form="onnx", settings=settings)
    other = found["parity"][0]["other_sizes"]
    assert [one["size"] for one in other] == [[24, 40], [32, 24]]
    assert max(each["relative"] for one in other for each in one["outputs"].values()) < 1e-5
    backbone, running = mst.load_backbone(path), onnx_file.session(tmp_path / "out" / "backbone.onnx")
    for size in ((8, 8), (64, 24), (40, 64)):
        images = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(2))
        tokens, read = backbone.tokens(images), onnx_file.run_session(running, images)
        torch.testing.assert_close(read["features"], tokens.cls, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(read["importance"], tokens.importance, atol=1e-6, rtol=1e-4)


def test_the_draw_is_of_the_seed(tmp_path: Path) -> None:
    subject, images = load_subject(random_backbone(tmp_path)), labelled(tmp_path / "images")
    first, again, other = (
        calibration_images(subject, OnnxSettings(("int8",), images / "train", 8, seed=seed)) for seed in (0, 0, 1)
    )
    assert first.pixels.shape == (8, 3, *SIZE)
    assert torch.equal(first.pixels, again.pixels)
    assert not torch.equal(first.pixels, other.pixels)


def test_above_the_tolerance_nothing_is_written() -> None:
    images, wanted = (
        Images(torch.zeros(4, 3, 2, 2), (), "none"),
        torch.randn(4, 64, generator=torch.Generator().manual_seed(0)),
    )
    for kind, factor, said in (
        ("fp16", 0.1, r"differ by .* of the largest, allowed are 0.01 in fp16"),
        ("int8", 2.0, r"differ by .* of the largest, allowed are 0.3 in int8"),
    ):
        other = {"features": wanted + factor * wanted.roll(1)}
        with pytest.raises(RunFailure, match=said):
            measure("onnx", "ONNX Runtime", images, {"features": wanted}, other, kind=kind)
    turned = wanted.clone()
    turned[:, ::2] += 0.29 * wanted.abs().max() * wanted[:, ::2].sign().neg()
    with pytest.raises(RunFailure, match=r"mean cosine similarity is 0.\d+, needed are 0.95 in int8"):
        measure("onnx", "ONNX Runtime", images, {"features": wanted}, {"features": turned}, kind="int8")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--types", "int4"), "must be among fp32, fp16, int8"),
        (("--types", "int8"), "--types int8 needs --calibration PATH"),
        (("--calibration", "empty"), "--calibration empty: is for --types int8"),
        (("--types", "int8", "--calibration", "empty"), "empty"),
        (("--types", "int8", "--calibration", "missing"), "missing"),
        (("--types", "int8", "--calibration", "few"), "--calibration few: 3 of 4 images can be read, int8 needs 8"),
        (("--types", "int8", "--calibration", "few", "--calibration-images", "2"), "must be at least 8"),
        (("--knn", "few"), "few"),
        (
            ("--format", "timm", "--types", "fp16"),
            "--types is for --backbone with --format onnx, not",
        ),
        (("--format", "hf", "--knn", "few"), "--knn is for --backbone with --format onnx, not"),
        (("--seed", "-1"), "--seed -1: must be at least 0"),
    ],
)
def test_what_cannot_be_is_refused(
    words: tuple[str, ...],
    said: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("onnxruntime")
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    Path("few").mkdir()
    for index in range(3):
        Image.new("RGB", (20, 20), (index, 0, 0)).save(f"few/{index}.png")
    Path("few/damaged.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    form = () if "--format" in words else ("--format", "onnx")
    answer = call(capsys, "export", "--backbone", random_backbone(tmp_path), "--out", "out", *form, *words)
    assert answer.status == 2
    assert said in answer.line
    assert not Path("out").exists()
