"""Training a detector with the shared downstream loop: the 1x schedule, layer-wise rates, mirrored images.

Source: 1x schedule and multi-scale training as in Mask R-CNN's reference implementations (He et al. 2019, "Rethinking
ImageNet pre-training"); layer-wise decay of the learning rate as in ViTDet (Li et al. 2022, appendix A.2). Differs:
every draw is a function of (seed, step), so a resumed run equals an uninterrupted one. Letters: H W pixels.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from mst.data.examples import ExampleBatch, Place, example_batches
from mst.data.order.epochs import EpochOrder
from mst.data.sampler import WHOLE, Share
from mst.engine.layer_decay import build_optimizer, parameter_groups
from mst.engine.schedule import LoopSettings
from mst.engine.supervised import PreparedTraining, TrainContext, Training
from mst.errors import DataError, UsageError
from mst.evaluate.coco.reading import CocoImage, CocoSet
from mst.evaluate.detection.detector import flipped, training_target
from mst.parallel.shares import own_share
from mst.runtime.device import to_device
from mst.runtime.limits import check_accumulate, check_numbers
from mst.runtime.seeding import generator

Batch = ExampleBatch[tuple[Tensor, dict[str, Tensor]]]
"""Images in [0, 1] [C, H, W] with their targets."""
WARMUP_SHARE = 10
"""The warm-up takes at most this part of all steps."""


@dataclass(frozen=True)
class TrainingSettings:
    """How a detector is trained.

    Attributes:
        epochs: passes over the training images; 12 is the "1x" schedule.
        batch_size: images per step.
        accumulate: microbatches, nearly equal, that make one step: less memory, the same step.
        lr: of AdamW at the heads.
        weight_decay: of AdamW; none on biases, norms and embeddings.
        layer_decay: the rate of each block is this times that of the block above it.
        warmup_steps: linear warm-up, at most a tenth of all steps.
        clip_norm: of all gradients together.
        drop_path: stochastic depth of the backbone's last block, linear from zero at the first.
        frozen: train the pyramid and the heads only.
    """

    epochs: int = 12
    batch_size: int = 16
    accumulate: int = 1
    lr: float = 1e-4
    weight_decay: float = 0.05
    layer_decay: float = 0.7
    warmup_steps: int = 500
    clip_norm: float = 1.0
    drop_path: float = 0.0
    frozen: bool = False

    def __post_init__(self) -> None:
        check_numbers(self, "epochs", "batch_size", "accumulate", least=1)
        check_numbers(self, "lr", "clip_norm", above=0)
        check_numbers(self, "weight_decay", "warmup_steps", least=0)
        check_numbers(self, "layer_decay", above=0, most=1)
        if not 0.0 <= self.drop_path < 1.0:
            raise UsageError(f"--drop-path {self.drop_path}: must be at least 0 and below 1")
        check_accumulate(self.batch_size, self.accumulate)

    def loop(self, images: int) -> LoopSettings:
        """Return what the loop does with so many images."""
        steps = -(-images * self.epochs // self.batch_size)
        return LoopSettings(
            steps=steps,
            batch_size=self.batch_size,
            lr=self.lr,
            warmup_steps=max(1, min(self.warmup_steps, steps // WARMUP_SHARE)),
            schedule="steps",
            clip_norm=self.clip_norm,
            accumulate=self.accumulate,
        )


def detector_optimizer(detector: nn.Module, settings: TrainingSettings) -> Optimizer:
    """Return AdamW with layer-wise rates over what a detector trains."""
    groups = parameter_groups(detector, weight_decay=settings.weight_decay, layer_decay=settings.layer_decay)
    return build_optimizer(groups)


def detector_training(
    detector: nn.Module,
    optimizer: Optimizer,
    images: Sequence[CocoImage],
    settings: TrainingSettings,
    context: TrainContext,
    *,
    channels: int,
    workers: int,
) -> PreparedTraining[Batch]:
    """Return the training of a detector, in place.

    Args:
        detector: on its device; it chooses the compute type itself.
        optimizer: from `detector_optimizer`.
        images: with at least one object each.
        settings: how.
        context: device, seed of order, mirroring and torchvision's draws, checkpoints and rows.
        channels: of the images.
        workers: threads that read images ahead.
    """
    plan = settings.loop(len(images))

    def batches(first: int) -> Generator[Batch, None, None]:
        return batch_stream(
            images, plan, first, channels=channels, seed=context.seed, workers=workers, share=own_share()
        )

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        device = context.device
        targets = [{key: to_device(value, device) for key, value in target.items()} for _, target in batch.examples]
        losses: dict[str, Tensor] = model([to_device(image, device) for image, _ in batch.examples], targets)
        return torch.stack(list(losses.values())).sum()

    def image(index: int) -> str:
        return images[index].name

    training = Training("detector", detector, optimizer, batches, loss, image=image)
    return PreparedTraining(training, plan, context)


def batch_stream(
    images: Sequence[CocoImage],
    plan: LoopSettings,
    first: int,
    *,
    channels: int,
    seed: int,
    workers: int,
    share: Share = WHOLE,
) -> Generator[Batch, None, None]:
    """Yield a process's share of the batches from step `first` on, read ahead by threads.

    Raises:
        DataError: an image cannot be read.
    """

    @lru_cache(maxsize=2)
    def mirrored(epoch: int) -> Tensor:
        return torch.rand(len(images), generator=generator(seed, "detection-flip", epoch)) < 0.5

    def read(place: Place) -> tuple[Tensor, dict[str, Tensor]]:
        epoch, position = divmod(place.place, len(images))
        return read_example(images[place.example], bool(mirrored(epoch)[position]), channels)

    order = EpochOrder(len(images), seed, purpose="detection-order")
    steps, accumulate = range(first, plan.steps), plan.accumulate
    return example_batches(read, order, steps, plan.batch_size, accumulate=accumulate, workers=workers, share=share)


def read_example(image: CocoImage, mirror: bool, channels: int) -> tuple[Tensor, dict[str, Tensor]]:
    """Return an image in [0, 1] [C, H, W] and its target.

    Raises:
        UnreadableImage: the file gives no image.
        DataError: it has another size than its annotations say.
    """
    pair = image.read(channels=channels).float() / 255, training_target(image)
    return flipped(*pair) if mirror else pair


def trainable_images(coco: CocoSet) -> list[CocoImage]:
    """Return the images with an object that is no crowd.

    Raises:
        DataError: there is none.
    """
    kept = [image for image in coco.images if any(not found.crowd for found in image.objects)]
    if not kept:
        raise DataError(f"{coco.file}: no image has an object to learn from")
    return kept
