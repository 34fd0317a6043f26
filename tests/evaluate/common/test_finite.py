"""What is not a number is not a result: one line names the layer, or the image, that it comes from."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

import mst
from evaluate.fakes import FakeBackbone, colour_sets
from mst.data.synthetic.scenes import SceneSet
from mst.errors import DataError, RunFailure
from mst.evaluate.classification.knn import evaluate_knn
from mst.evaluate.classification.linear_probe import LinearProtocol, evaluate_linear
from mst.evaluate.classification.logistic import evaluate_logistic
from mst.evaluate.classification.retrieval import evaluate_retrieval
from mst.evaluate.common.features import FeatureSettings, extract_features
from mst.evaluate.common.protocol import ImageTransform
from mst.evaluate.objectness.evaluation import evaluate_objectness
from mst.evaluate.objectness.objects import scene_objects
from mst.evaluate.segmentation.data import SegmentationData, SegmentationSet, scene_segmentation
from mst.evaluate.segmentation.evaluation import SegmentationProtocol, evaluate_segmentation
from mst.model.backbone import Backbone, BackboneSpec
from mst.model.build import build_backbone
from mst.runtime.storage.results import Result

QUIET = FeatureSettings(forward_batch=7, workers=1, precision="fp32", progress=False)
NORM = "the weights norm.weight are not"


def broken() -> Backbone:
    spec = BackboneSpec("vit_tiny_patch16_224", (32, 32), 3, 16, embed_dim=32, depth=2, num_heads=2)
    backbone = build_backbone(spec, seed=0).eval()
    weights = {name: value.clone() for name, value in backbone.state_dict().items()}
    name = next(name for name in weights if name.endswith("norm.weight") and "block" not in name)
    weights[name][3] = math.nan
    backbone.load_state_dict(weights)
    return backbone


def objects() -> Result:
    backbone = broken()
    with torch.no_grad():
        next(value for name, value in backbone.state_dict().items() if "qkv.weight" in name)[0, 0] = math.nan
    return evaluate_objectness(backbone, scene_objects(SceneSet(0, 2, 32)), settings=QUIET)


@pytest.mark.parametrize("evaluate", [evaluate_knn, evaluate_linear, evaluate_logistic, evaluate_retrieval])
def test_no_number_from_weights_that_are_none(evaluate: Callable[..., Result]) -> None:
    with pytest.raises(RunFailure, match=r"the features are not finite numbers, because the weights .*norm.weight are"):
        evaluate(broken(), colour_sets(), ImageTransform((32, 32)), settings=QUIET)


def test_neither_from_augmented_images() -> None:
    class Late(FakeBackbone):
        """Sound until the augmented images come, which are read once for every epoch."""

        def intermediate(self, images: Tensor, layers: int) -> list:
            found = super().intermediate(images, layers)
            return [each._replace(cls=each.cls / 0) if len(self.batches) > 12 else each for each in found]

    protocol = LinearProtocol(mode="augmented", epochs=2, blocks=1)
    with pytest.raises(RunFailure, match=r"the features of image \d+ are not finite"):
        evaluate_linear(Late(), colour_sets(), ImageTransform((8, 8)), protocol, settings=QUIET)


@pytest.mark.parametrize("protocol", [SegmentationProtocol(steps=2), SegmentationProtocol(steps=2, stride=(16, 16))])
def test_neither_from_segmentation_and_objectness(protocol: SegmentationProtocol) -> None:
    data = scene_segmentation(SceneSet(0, 3, 32), SceneSet(1, 2, 32))
    with pytest.raises(RunFailure, match=r"not finite|without a finite loss"):
        evaluate_segmentation(broken(), data, protocol, settings=QUIET)
    with pytest.raises(RunFailure, match="attention weights are not finite numbers, because the weights"):
        objects()


def test_the_image_is_named_where_the_weights_are_sound() -> None:
    def divide(backbone: FakeBackbone, images: Tensor) -> Tensor:
        return images.mean((2, 3)) / (images.mean((1, 2, 3)) != 0)[:, None]

    sets = colour_sets()
    images = [torch.full((3, 8, 8), 7, dtype=torch.uint8)] * 9 + [torch.zeros(3, 8, 8, dtype=torch.uint8)]
    black = type(sets.train).from_tensors(images, [0] * 10)
    transform = ImageTransform((8, 8), mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    with pytest.raises(RunFailure, match=r"the features of image 9 are not finite numbers, although the weights are"):
        extract_features(FakeBackbone(), black, transform, divide, QUIET)


def test_embed_writes_nothing(tmp_path: Path) -> None:
    from commands.calls import image_folder

    with pytest.raises(RunFailure, match="not finite"):
        mst.embed(broken(), image_folder(tmp_path / "images", 4), out=tmp_path / "f.npz")
    assert not (tmp_path / "f.npz").exists()


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_result_is_made_of_numbers(value: float) -> None:
    with pytest.raises(RunFailure, match="segmentation: miou is not a finite number, so there is no result"):
        Result("segmentation", {"aacc": 1.0, "miou": value}, {})


def test_a_linear_probe_that_diverged_is_no_result() -> None:
    backbone = FakeBackbone()
    backbone.scale.data *= 1e18
    with pytest.raises(RunFailure, match="diverged at every learning rate"):
        evaluate_linear(
            backbone, colour_sets(), ImageTransform((8, 8)), LinearProtocol(lrs=(1e30,), epochs=9), settings=QUIET
        )


def half(size: int = 32) -> Tensor:
    return torch.arange(size).repeat(size, 1) // (size // 2)


@pytest.mark.parametrize("stride", [None, (16, 16)])
@pytest.mark.parametrize(
    ("classes", "train", "val", "said"),
    [
        (("bg", "a"), half(), torch.full((32, 32), 255), "no pixel of the validation masks has a class, all are 255"),
        (("bg", "a"), torch.full((32, 32), 255), half(), "no pixel of the training masks has a class, all are 255"),
        (
            ("only",),
            torch.zeros(32, 32, dtype=torch.int64),
            torch.zeros(32, 32, dtype=torch.int64),
            "there is one class",
        ),
    ],
)
def test_masks_without_anything_to_learn_or_to_score(
    stride: tuple[int, int] | None, classes: tuple[str, ...], train: Tensor, val: Tensor, said: str
) -> None:
    image = torch.randint(256, (3, 32, 32), dtype=torch.uint8)
    data = SegmentationData(
        classes,
        SegmentationSet.from_tensors([image] * 3, [train] * 3),
        SegmentationSet.from_tensors([image], [val]),
        ignore_index=255,
    )
    spec = BackboneSpec("vit_tiny_patch16_224", (32, 32), 3, 16, embed_dim=32, depth=2, num_heads=2)
    protocol = SegmentationProtocol(size=(32, 32) if stride is None else (16, 16), stride=stride, steps=2)
    with pytest.raises(DataError, match=said):
        evaluate_segmentation(build_backbone(spec, seed=0).eval(), data, protocol, settings=QUIET)
