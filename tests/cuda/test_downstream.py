"""Steps of trainings with labels on a CUDA device that is not there: one device for all, and few waits of the host."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from cuda.fake import CARD, HostWaits, fake_cuda
from evaluate.segmenters import striped_data
from mst.engine.layer_decay import build_optimizer, parameter_groups
from mst.engine.schedule import Checkpointing, LoopSettings
from mst.engine.supervised import TrainContext, Training, _Supervised
from mst.evaluate.common.pyramid import Pyramid
from mst.evaluate.segmentation.heads import HeadName, HeadShape
from mst.evaluate.segmentation.inference import View
from mst.evaluate.segmentation.model import Segmenter
from mst.evaluate.segmentation.training import Batch, Task, segmenter_training
from mst.finetune.augment import erased
from mst.finetune.classifier import Classifier, FinetuneProtocol
from mst.model.backbone import BackboneSpec
from mst.model.build import build_backbone
from mst.views.normalise import normalise
from mst.workflows.finetuning.batches import mixed_loss

VIT = BackboneSpec("vit_tiny_patch16_224", (32, 32), 3, 16, embed_dim=32, depth=2, num_heads=2)
SWIN = BackboneSpec("swin_tiny_patch4_window7_224", (64, 64), 3, 32, embed_dim=16, depth=1, num_heads=1)
BATCH = 4


def fake_step(
    model: nn.Module,
    loss: Any,
    batch: Any,
    *,
    dtype: torch.dtype,
    training_of: Callable[[nn.Module], Training[Any]] | None = None,
) -> tuple[nn.Module, HostWaits]:
    """Do one step of two microbatches; return the model, and what the host waited for."""
    settings = LoopSettings(steps=10, batch_size=2 * BATCH, lr=0.1, accumulate=2, clip_norm=1.0)
    model = model.to(device="meta")
    with fake_cuda() as waits:
        like = model.to_empty(device=CARD)
        if training_of is not None:
            training = training_of(like)
            waits.found.clear()  # class weights go to the card once
        else:
            optimizer = build_optimizer(parameter_groups(like, weight_decay=0.1, layer_decay=0.7))
            training = Training("test", like, optimizer, iter, loss)  # type: ignore[arg-type]
        task = _Supervised(training, settings, TrainContext(CARD, dtype, 0, Checkpointing(), {}))
        report = task.gradients([batch, batch], row_due=True)
        task.apply(report)
        task.after_step(report, row_due=True)
    assert {tensor.device for tensor in (*like.parameters(), *like.buffers())} == {CARD}
    missing = {name for name, value in like.named_parameters() if value.requires_grad and value.grad is None}
    assert {name for name in missing if "mask_token" not in name} == set()
    return like, waits


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("mixing", [(0.8, 0.0), (0.0, 1.0)], ids=["mixup", "cutmix"])
def test_classification(mixing: tuple[float, float], dtype: torch.dtype) -> None:
    protocol = FinetuneProtocol(mixup=mixing[0], cutmix=mixing[1], drop_path=0.3)
    model = Classifier(build_backbone(VIT, drop_path=0.3), 5, seed=0)
    pixels, labels = torch.zeros(BATCH, 3, 32, 32, dtype=torch.uint8), torch.zeros(BATCH, dtype=torch.int64)

    def loss(like: nn.Module, batch: Any) -> Tensor:
        draw = np.random.default_rng(0)
        images = normalise(pixels.to(CARD, non_blocking=True), (0.5,), (0.2,))
        images, classes = erased(images, 1.0, draw), labels.to(CARD, non_blocking=True)
        return mixed_loss(like, images, classes, protocol=protocol, classes=5, draw=draw) * BATCH

    batch = SimpleNamespace(positions=range(BATCH), indices=[0] * BATCH)
    assert fake_step(model, loss, batch, dtype=dtype)[1].found == {"values": 1}


@pytest.mark.parametrize(
    ("spec", "head"), [(VIT, "setr-pup"), (SWIN, "upernet"), (VIT, "linear")], ids=["setr", "upernet", "linear"]
)
def test_segmentation(spec: BackboneSpec, head: HeadName) -> None:
    """The package's own loss and weight of a microbatch, with class weights."""
    model = Segmenter(build_backbone(spec), ("dark", "bright"), HeadShape(head, 8), frozen=False, seed=0)
    settings = LoopSettings(steps=10, batch_size=BATCH, lr=0.1)
    view = View(spec.image_size, spec.image_size, (0.5,) * 3, (0.2,) * 3)
    task = Task(striped_data(), view, settings, 0.01, 2, class_weights=(1.0, 2.0))
    masks = torch.zeros(BATCH, *spec.image_size, dtype=torch.int64)
    batch = Batch(torch.zeros(BATCH, 3, *spec.image_size), masks, [0] * BATCH, range(BATCH))

    def training_of(like: nn.Module) -> Training[Any]:
        assert isinstance(like, Segmenter)
        return segmenter_training(like, task, TrainContext(CARD, torch.float32, 0, Checkpointing(), {})).training

    waits = fake_step(model, None, batch, dtype=torch.float32, training_of=training_of)[1]
    assert waits.found == {"values": 1}


@pytest.mark.parametrize("spec", [VIT, SWIN], ids=["vit", "swin"])
def test_the_pyramid_of_a_detector(spec: BackboneSpec) -> None:
    """torchvision's detector on top of it picks boxes by their values, which are not there."""
    model = Pyramid(build_backbone(spec), channels=8, frozen=False, compute=torch.bfloat16)

    def loss(like: nn.Module, batch: Any) -> Tensor:
        images = torch.zeros(BATCH, 3, 64, 64).to(CARD, non_blocking=True)
        return torch.stack([level.square().mean() for level in like(images).values()]).sum() * BATCH

    batch = SimpleNamespace(positions=range(BATCH), indices=[0] * BATCH)
    assert fake_step(model, loss, batch, dtype=torch.float32)[1].found == {"values": 1}
