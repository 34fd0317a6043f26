"""`mst export --format onnx --preprocess`: stored pixels of any size become what evaluations make of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import mst
from commands.calls import call
from commands.test_export_types import labelled, random_backbone
from mst.config.schema import ModelConfig
from mst.errors import RunFailure, UsageError
from mst.evaluate.common.features import FeatureSettings
from mst.evaluate.common.protocol import ImageTransform
from mst.export import onnx_file
from mst.export.network import expected
from mst.export.onnx_images import Preprocessing, preprocessing_graph
from mst.export.reading import load_exported
from mst.model.build import backbone_spec, build_backbone
from mst.workflows.exporting import raw_images
from mst.workflows.exporting.onnx_settings import OnnxSettings
from mst.workflows.exporting.settings import ExportSettings

SIZE = (16, 24)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    pytest.importorskip("onnxruntime")
    folder = tmp_path_factory.mktemp("preprocessing")
    images = labelled(folder / "images")
    asked = OnnxSettings(("fp32", "int8"), images / "train", calibration_images=8, preprocess=True)
    settings = ExportSettings(images / "val", ("features", "cls_token", "patch_tokens"), onnx=asked)
    return folder, mst.export_backbone(random_backbone(folder), folder / "out", form="onnx", settings=settings)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [(64, 96), (16, 24), (33, 17)])
def test_pixels_are_prepared_as_evaluations_do(channels: int, size: tuple[int, int]) -> None:
    pytest.importorskip("onnxruntime")
    transform = ImageTransform(size, (0.4,) * channels, (0.25,) * channels)
    running = onnx_file.session_of(preprocessing_graph(Preprocessing(size, transform.mean, transform.std, 256 / 224)))
    draw = torch.Generator().manual_seed(0)
    for height, width in ((64, 96), (37, 211), (16, 24), (1, 1), (101, 99), (20, 30), (17, 25), (300, 33)):
        image = torch.randint(0, 256, (channels, height, width), generator=draw, dtype=torch.uint8)
        found = onnx_file.run_session(running, image.permute(1, 2, 0)[None].contiguous())["images"]
        levels = ((found[0] - transform(image)) * 0.25 * 255).abs()
        assert found.shape == (1, channels, *size)
        assert levels.max() < 1.01
        assert (levels > 0.5).double().mean() < 0.02
        if (height, width) == size:
            assert levels.max() < 1e-3


@pytest.mark.slow
def test_the_file_takes_images_of_every_size(exported: tuple[Path, dict[str, Any]]) -> None:
    import onnxruntime

    folder, found = exported
    rows = {row["type"]: row for row in found["parity"]}
    assert rows["fp32"]["outputs"]["features"]["relative"] < 1e-5  # of images that are of its own size already
    for row in rows.values():
        prepared = row["preprocessing"]
        assert (prepared["most_levels"] <= 1, prepared["share"] < 0.02) == (True, True)
        assert prepared["outputs"]["features"]["cosine"] > 0.98
    running = onnxruntime.InferenceSession(folder / "out" / "backbone.onnx")
    assert [(one.name, one.type) for one in running.get_inputs()] == [("pixels", "tensor(uint8)")]
    image = torch.randint(0, 256, (50, 31, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(3))
    features = running.run(["features"], {"pixels": image[None].repeat(2, 1, 1, 1).numpy()})[0]
    own = mst.load_backbone(folder)
    expected_features = own(own.transform(image.numpy())[None])[0]
    for row in features:
        assert torch.nn.functional.cosine_similarity(torch.from_numpy(row), expected_features, dim=0) > 0.999


@pytest.mark.slow
def test_it_is_evaluated_by_the_same_protocols(exported: tuple[Path, dict[str, Any]]) -> None:
    folder, exact = exported[0], FeatureSettings(precision="fp32")
    own = mst.embed(folder, folder / "images" / "val", settings=exact).features
    found = mst.embed(folder / "out", folder / "images" / "val").features
    torch.testing.assert_close(found, own, atol=1e-4, rtol=1e-4)  # the stored pixels are found again exactly
    read = load_exported(folder / "out")[0]
    tokens, wanted = (
        each.tokens(torch.zeros(1, 3, *SIZE), importance=False) for each in (read, mst.load_backbone(folder))
    )
    assert tokens.cls_token is not None
    assert wanted.cls_token is not None
    assert tokens.cls_token.shape == wanted.cls_token.shape == (1, 32)
    with pytest.raises(UsageError, match="cuts every image to 16x24"):
        read(torch.zeros(1, 3, 32, 24))


@pytest.mark.slow
def test_another_resize_is_refused(exported: tuple[Path, dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    from mst.workflows.export_images import measuring_images
    from mst.workflows.subject import load_subject

    subject = load_subject(exported[0] / "backbone.safetensors")
    images = measuring_images(subject, exported[0] / "images" / "val", flag="--images")
    monkeypatch.setattr(raw_images, "MOST_SHARE", 0.0)
    with pytest.raises(RunFailure, match="prepares images in another way than this package"):
        raw_images.RawImages.of(subject, images).compare(None, {})


def test_the_cls_token_is_told_from_pooled_features(tmp_path: Path) -> None:
    images = torch.randn(2, 3, *SIZE)
    for name, has_cls in (("vit_tiny_patch16_224", True), ("vit_base_patch16_gap_224", False)):
        config = ModelConfig(backbone=name, patch_size=8, embed_dim=32, depth=1, num_heads=2)
        backbone = build_backbone(backbone_spec(config, image_size=SIZE, channels=3), seed=1).eval()
        if has_cls:
            found = expected(backbone, images, ("features", "cls_token"))
            torch.testing.assert_close(found["features"], found["cls_token"])
            backbone.model.global_pool, backbone.reads_only_cls = "avg", False
            pooled = expected(backbone, images, ("features", "cls_token"))
            torch.testing.assert_close(pooled["cls_token"], found["cls_token"])
            assert not torch.allclose(pooled["features"], found["features"], atol=1e-2)
        else:
            with pytest.raises(UsageError, match="--outputs cls_token: vit_base_patch16_gap_224 has none"):
                expected(backbone, images, ("cls_token",))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--format", "onnx", "--preprocess", "--any-size"), "leave --any-size away"),
        (("--format", "timm", "--preprocess"), "--preprocess is for --backbone with --format onnx"),
    ],
)
def test_what_does_not_go_together(
    words: tuple[str, ...], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    answer = call(capsys, "export", "--backbone", random_backbone(tmp_path), "--out", tmp_path / "out", *words)
    assert answer.status == 2
    assert said in answer.line
