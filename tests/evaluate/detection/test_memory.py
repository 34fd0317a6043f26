"""A detector's training that cannot fit into memory is refused; what is counted is near what a real step takes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from evaluate.coco_folders import write_coco
from mst.engine import fitting as engine_fitting
from mst.engine.footprint import LiveBytes
from mst.errors import UsageError
from mst.evaluate.coco.reading import CocoSet, find_coco, read_coco
from mst.evaluate.common.features import FeatureSettings
from mst.evaluate.common.pyramid import Pyramid
from mst.evaluate.detection.detector import DetectorShape, build_detector, training_target
from mst.evaluate.detection.evaluation import DetectionData, DetectionProtocol, evaluate_detection
from mst.evaluate.detection.memory import counted_bytes, most_bytes, padded_size
from mst.evaluate.detection.training import TrainingSettings, detector_optimizer, trainable_images
from mst.model.backbone import BackboneSpec
from mst.model.build import build_backbone

FAR = 2**50
SHAPE = DetectorShape(short_sides=(96, 128), long_side=192, channels=16, head_dim=32, anchor_size=8)
SPEC = BackboneSpec("vit_tiny_patch16_224", (128, 128), 3, 16, embed_dim=32, depth=2, num_heads=2)


@pytest.fixture(scope="module")
def coco(tmp_path_factory: pytest.TempPathFactory) -> CocoSet:
    return read_coco(*find_coco(write_coco(tmp_path_factory.mktemp("coco")), "train"))


def detector(masks: bool = True) -> Any:
    pyramid = Pyramid(build_backbone(SPEC, seed=1), channels=16, frozen=False, compute=torch.float32)
    return build_detector(pyramid, 3, SHAPE, mean=(0.5,) * 3, std=(0.2,) * 3, masks=masks)


def test_the_bound_holds_and_the_count_is_near_a_real_step(coco: CocoSet) -> None:
    images, settings = trainable_images(coco), TrainingSettings(batch_size=8)
    model = detector()
    size = padded_size(model, images)
    few, many = (counted_bytes(model, size, settings, count, FAR) for count in (8, 32))
    assert few < many <= most_bytes(model, size, 32)
    assert few <= most_bytes(model, size, 8)
    assert counted_bytes(detector(masks=False), size, settings, 8, FAR) < few
    pairs = [(image.read(channels=3).float() / 255, training_target(image)) for image in images]
    pairs = [pairs[index % len(pairs)] for index in range(32)]
    with LiveBytes("cpu") as live:
        real = detector().train()
        optimizer = detector_optimizer(real, settings)
        for _ in range(2):
            losses = real([image for image, _ in pairs], [dict(target) for _, target in pairs])
            torch.stack(list(losses.values())).sum().backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    assert 0.8 < many / live.taken < 3  # small images have fewer proposals than are sampled at most


def test_what_does_not_fit_is_refused(coco: CocoSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_fitting, "free_memory", lambda device: int(0.3 * 2**30))
    protocol = DetectionProtocol(TrainingSettings(epochs=16, batch_size=64), SHAPE)
    quiet = FeatureSettings(precision="fp32", progress=False)
    with pytest.raises(UsageError, match=r"a microbatch of 64 images needs .* it does not fit; .*--short-sides"):
        evaluate_detection(build_backbone(SPEC, seed=1).eval(), DetectionData(coco, coco), protocol, settings=quiet)
