"""A segmentation training that cannot fit into memory is refused; the bound that spares the count holds."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from mst.engine import fitting as engine_fitting
from mst.engine.schedule import LoopSettings
from mst.errors import UsageError
from mst.evaluate.segmentation.data import SegmentationData, SegmentationSet
from mst.evaluate.segmentation.evaluation import SegmentationProtocol, evaluate_segmentation
from mst.evaluate.segmentation.heads import HeadShape
from mst.evaluate.segmentation.inference import View
from mst.evaluate.segmentation.model import Segmenter
from mst.evaluate.segmentation.training import HeadTraining, Task, counted_bytes, most_bytes
from mst.model.backbone import Backbone, BackboneSpec
from mst.model.build import build_backbone

FAR = 2**50
CLASSES = tuple(f"class {number}" for number in range(20))


def backbone() -> Backbone:
    return build_backbone(BackboneSpec("vit_tiny_patch16_224", (64, 64), 3, 16, embed_dim=32, depth=4, num_heads=2))


def pairs() -> SegmentationData:
    images = [torch.randint(256, (3, 64, 64), dtype=torch.uint8) for _ in range(4)]
    masks = [torch.arange(64 * 64).view(64, 64) % len(CLASSES) for _ in range(4)]
    sets = SegmentationSet.from_tensors(images[:3], masks[:3]), SegmentationSet.from_tensors(images[3:], masks[3:])
    return SegmentationData(CLASSES, *sets)


@pytest.mark.parametrize(
    ("shape", "frozen"),
    [
        (HeadShape(), False),
        (HeadShape("setr-naive", 16), True),
        (HeadShape("setr-pup", 64), False),
        (HeadShape("upernet", 64), True),
        (HeadShape("upernet", 16, "group"), False),
    ],
)
def test_the_bound_holds(shape: HeadShape, frozen: bool) -> None:
    segmenter = Segmenter(backbone(), CLASSES, shape, frozen=frozen, seed=0)
    view = View((64, 64), (32, 32), (0.5,) * 3, (0.2,) * 3)
    loop = LoopSettings(steps=4, batch_size=64, lr=1e-3)
    task = Task(pairs(), view, loop, 0.0, loss_stride=1, training=HeadTraining(train_backbone=not frozen))
    few, many = (counted_bytes(segmenter, task, torch.float32, images, FAR) for images in (8, 64))
    assert few < many <= most_bytes(segmenter, task, 64)
    assert few <= most_bytes(segmenter, task, 8)


def test_what_does_not_fit_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_fitting, "free_memory", lambda device: int(0.3 * 2**30))
    protocol: Any = SegmentationProtocol(steps=2, batch_size=256, shape=HeadShape("setr-pup", 64))
    with pytest.raises(
        UsageError, match=r"a microbatch of 256 images needs .* it does not fit; at most \d+ do: --accumulate"
    ):
        evaluate_segmentation(backbone(), pairs(), protocol)
