"""Training a segmenter: cross-entropy of the head and the auxiliary heads; batches are functions of their step.

Source: SETR's settings in mmsegmentation (SGD or AdamW, poly schedule of power 0.9, the head's rate ten times the
backbone's, auxiliary losses weighted 0.4); layer-wise decay of the rate as in BEiT (Bao et al. 2022). Differs: the
lowest learning rate is scaled with the group, not the same for all. Letters: B images, K classes, H W pixels.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from math import prod
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer

from mst.data.examples import Place, example_batches
from mst.data.order.epochs import EpochOrder
from mst.data.sampler import WHOLE, Share
from mst.engine.fitting import MicrobatchSize, check_counted
from mst.engine.footprint import training_bytes
from mst.engine.layer_decay import OptimizerName, build_optimizer, parameter_groups
from mst.engine.schedule import LoopSettings, Schedule
from mst.engine.supervised import PreparedTraining, TrainContext, Training
from mst.errors import UsageError
from mst.evaluate.common.features import device_of
from mst.evaluate.segmentation.augment import Augmentation, augmented
from mst.evaluate.segmentation.data import NO_CLASS, SegmentationData
from mst.evaluate.segmentation.heads import enlarge
from mst.evaluate.segmentation.inference import View
from mst.evaluate.segmentation.model import Segmenter
from mst.model.bounds import most_of_scores, most_of_tokens
from mst.parallel.shares import own_share
from mst.runtime.device import to_device
from mst.runtime.seeding import generator

AUXILIARY_WEIGHT = 0.4
MAPS_A_CHANNEL, MAPS_A_CLASS = 12, 12
"""Most numbers that a head keeps of each pixel for each of its channels, and for each class."""


class Batch(NamedTuple):
    """A microbatch.

    Attributes:
        images: normalised, [B, C, H, W].
        masks: classes of the pixels [B, H, W], NO_CLASS where there is none.
        indices: of the images in the training set.
        positions: of the images in the step's whole batch.
    """

    images: Tensor
    masks: Tensor
    indices: Sequence[int]
    positions: range


@dataclass(frozen=True)
class HeadTraining:
    """How a head that is more than the cached linear layer is trained.

    Attributes:
        train_backbone: also train (a copy of) the backbone.
        optimizer: adamw or sgd (momentum 0.9).
        schedule: of the learning rate, after the warm-up.
        warmup_steps: linear warm-up.
        min_lr: learning rate of the last step.
        backbone_scale: the backbone's share of the learning rate.
        layer_decay: the rate of each block over that of the block above it.
        clip_norm: of all gradients together; None = no clipping.
        accumulate: microbatches, nearly equal, that make one step: less memory, other batch statistics.
    """

    train_backbone: bool = False
    optimizer: OptimizerName = "adamw"
    schedule: Schedule = "poly"
    warmup_steps: int = 0
    min_lr: float = 0.0
    backbone_scale: float = 0.1
    layer_decay: float = 1.0
    clip_norm: float | None = 1.0
    accumulate: int = 1

    def __post_init__(self) -> None:
        if not 0.0 < self.layer_decay <= 1.0 or not 0.0 < self.backbone_scale <= 1.0:
            raise UsageError("--layer-decay and --backbone-scale must be above 0 and at most 1")
        if self.warmup_steps < 0:
            raise UsageError(f"--warmup-steps {self.warmup_steps}: must be at least 0")
        if self.accumulate < 1:
            raise UsageError(f"--accumulate {self.accumulate}: must be at least 1")


@dataclass(frozen=True)
class Task:
    """All that the batches and the loss depend on.

    Attributes:
        data: images and masks.
        view: how validation images are looked at; training crops have its size.
        loop: steps, images per step, learning rate.
        weight_decay: none on biases, norms and embeddings.
        loss_stride: the loss is taken on every n-th pixel in both directions.
        class_weights: factor of each class in the loss; empty = 1 for all.
        training: optimizer and rates.
        augmentation: how training images vary.
        workers: threads that read images.
    """

    data: SegmentationData
    view: View
    loop: LoopSettings
    weight_decay: float
    loss_stride: int
    class_weights: tuple[float, ...] = ()
    training: HeadTraining = field(default_factory=HeadTraining)
    augmentation: Augmentation = field(default_factory=Augmentation)
    workers: int = 2


def segmenter_training(segmenter: Segmenter, task: Task, context: TrainContext) -> PreparedTraining[Batch]:
    """Return the training of a segmenter, in place.

    Raises:
        UsageError: class weights that do not fit the classes.
    """
    on_cpu = class_weights(task.class_weights, len(task.data.classes))
    weights = None if on_cpu is None else on_cpu.to(context.device)

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        return segmentation_loss(model, batch, task.loss_stride, weights, context.device)

    def weight(batch: Batch) -> float:
        """Return the weights of all pixels with a class: the loss is the mean over those of the whole batch."""
        stride = task.loss_stride
        target = coarse(batch.masks, [-(-side // stride) for side in batch.masks.shape[1:]])
        return float(pixel_weights(target, on_cpu).sum())

    def batches(first: int) -> Generator[Batch, None, None]:
        return batch_stream(task, first, context.seed, share=own_share())

    training = Training(
        f"{segmenter.shape.head} segmenter",
        segmenter,
        segmenter_optimizer(segmenter, task),
        batches,
        loss,
        image=task.data.train.name,
        weight=weight,
    )
    return PreparedTraining(training, task.loop, context)


def class_weights(weights: tuple[float, ...], num_classes: int) -> Tensor | None:
    """Return weights [K], or None where all are one.

    Raises:
        UsageError: not one for each class, or none above 0.
    """
    if not weights:
        return None
    if len(weights) != num_classes or min(weights) < 0 or max(weights) <= 0:
        raise UsageError(
            f"--class-weights has {len(weights)} numbers: give one for each of the {num_classes} classes, none "
            "negative, not all 0"
        )
    return torch.tensor(weights)


def segmenter_optimizer(segmenter: Segmenter, task: Task) -> Optimizer:
    """Return the optimizer: the head at the full rate, the backbone at its share, lower for blocks nearer the input."""
    training = task.training
    groups = parameter_groups(nn.ModuleList([segmenter.maps, segmenter.head]), weight_decay=task.weight_decay)
    if not segmenter.frozen:
        inner = parameter_groups(segmenter.backbone, weight_decay=task.weight_decay, layer_decay=training.layer_decay)
        groups += [{**group, "scale": training.backbone_scale * group["scale"]} for group in inner]
    return build_optimizer(groups, training.optimizer)


def segmentation_loss(
    segmenter: Any, batch: Batch, stride: int, weights: Tensor | None, device: torch.device
) -> Tensor:
    """Return the loss of the head plus 0.4 times that of each auxiliary head."""
    target = coarse(
        to_device(batch.masks, device), [-(-side // stride) for side in batch.masks.shape[1:]]
    )  # [B,H/s,W/s]
    found = segmenter.all_logits(to_device(batch.images, device))
    main, *auxiliary = (pixel_loss(logits, target, weights) for logits in found)
    return torch.stack([main, *(AUXILIARY_WEIGHT * loss for loss in auxiliary)]).sum()


def pixel_loss(logits: Tensor, target: Tensor, weights: Tensor | None) -> Tensor:
    """Return the mean cross-entropy over the pixels with a class, 0 if there is none.

    Args:
        logits: [B, K, h, w], enlarged here to the target's size.
        target: [B, H, W], NO_CLASS where there is none.
        weights: factor of each class [K]; the mean is then the weighted one, as in torch's `cross_entropy`.
    """
    total = F.cross_entropy(enlarge(logits, target.shape[1:]), target, weights, ignore_index=NO_CLASS, reduction="sum")
    return total / pixel_weights(target, weights).sum().clamp(min=torch.finfo(torch.float32).tiny)


def pixel_weights(target: Tensor, weights: Tensor | None) -> Tensor:
    """Return how much each pixel of a target [B, H, W] counts; arguments as of `pixel_loss`."""
    known = target != NO_CLASS
    return known.float() if weights is None else known * weights[target.clamp(min=0)]


def coarse(masks: Tensor, size: Sequence[int]) -> Tensor:
    """Return masks [B, H, W] at another size, each pixel that of the nearest one."""
    if tuple(masks.shape[1:]) == tuple(size):
        return masks
    return F.interpolate(masks[:, None].float(), (size[0], size[1]), mode="nearest-exact")[:, 0].long()


def batch_stream(task: Task, first: int, seed: int, *, share: Share = WHOLE) -> Generator[Batch, None, None]:
    """Yield a process's share of the batches from step `first` on, read ahead by threads.

    Raises:
        DataError: an image or a mask cannot be used.
    """
    data, loop = task.data, task.loop

    def read(place: Place) -> tuple[Tensor, Tensor]:
        image, mask = data.checked(data.train, place.example)
        draw = generator(seed, "segmentation-augment", place.place)
        return augmented(image, mask, task.view, task.augmentation, draw)

    order = EpochOrder(len(data.train), seed, purpose="segmentation-order")
    steps = range(first, loop.steps)
    batches = example_batches(
        read, order, steps, loop.batch_size, accumulate=loop.accumulate, workers=task.workers, share=share
    )
    with closing(batches) as found:
        for batch in found:
            images, masks = map(torch.stack, zip(*batch.examples, strict=True))
            yield Batch(images, masks, batch.indices, batch.positions)


def check_fits(segmenter: Segmenter, task: Task, dtype: torch.dtype) -> None:
    """Refuse a training whose first step cannot fit into the memory of its device; warn where it is tight.

    Raises:
        UsageError: it cannot; says what is needed and available, and which option to change to what.
    """
    loop, device = task.loop, device_of(segmenter)
    asked = MicrobatchSize(
        -(-loop.batch_size // (loop.accumulate * own_share().size)),
        loop.batch_size,
        loop.accumulate,
        device,
        smaller="smaller crops (--size)",
        network="a smaller head or network (--channels, --backbone)",
    )
    counted = partial(counted_bytes, segmenter, task, dtype)
    check_counted(asked, counted, most=most_bytes(segmenter, task, asked.images))


def most_bytes(segmenter: Segmenter, task: Task, images: int) -> int:
    """Return an upper bound of the bytes of a step, from the sizes of network, head and crops alone."""
    spec, pixels = segmenter.backbone.spec, prod(task.view.size)
    tokens = pixels // spec.patch_size**2 + 1
    fixed = 24 * sum(parameter.numel() for parameter in segmenter.parameters()) + 2**28
    of_backbone = most_of_tokens(spec, kept=tokens, seen=4 * tokens) + most_of_scores(spec, tokens)
    of_head = MAPS_A_CHANNEL * segmenter.shape.channels + MAPS_A_CLASS * len(segmenter.classes)
    return round(fixed + images * (of_backbone + 4 * pixels * (6 * spec.channels + of_head)))


def counted_bytes(segmenter: Segmenter, task: Task, dtype: torch.dtype, images: int, most: int) -> int:
    """Return the memory of a step whose microbatches have so many images.

    Raises:
        TooManyBytes: more than `most`.
    """
    shape, device = (segmenter.backbone.spec.channels, *task.view.size), device_of(segmenter)

    def loss(like: nn.Module) -> Tensor:
        views, masks = torch.zeros(images, *shape), torch.zeros(images, *shape[1:], dtype=torch.int64)
        batch = Batch(views, masks, range(images), range(images))
        return segmentation_loss(like, batch, task.loss_stride, None, device)

    return training_bytes(
        segmenter,
        lambda like: segmenter_optimizer(like, task),  # type: ignore[arg-type]
        loss,
        device=device,
        dtype=dtype,
        microbatches=task.loop.accumulate,
        most=most,
    )
