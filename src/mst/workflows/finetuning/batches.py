"""The batches of a fine-tuning and their loss: views from the loader, erasing and mixing on the device."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mst.config.schema import RunConfig
from mst.data.labelled import LabelledFolder
from mst.data.loader import BatchLoader, Flags, StackedBatch
from mst.data.sampler import WHOLE, Share
from mst.engine.schedule import LoopSettings
from mst.evaluate.common.protocol import random_resized_crop
from mst.finetune.augment import RGB, RandAugment, erased, mixed
from mst.finetune.classifier import FinetuneProtocol
from mst.planning.setup import loader_workers
from mst.runtime.device import select_device, to_device
from mst.runtime.seeding import derive_seed
from mst.runtime.storage.rundir import RunDir
from mst.views.normalise import normalise
from mst.workflows.finetuning.start import FinetuneConfig, Network


@dataclass(frozen=True)
class Work:
    """A checked fine-tuning.

    Attributes:
        config: what was asked for.
        network: what is trained.
        folder: the labelled images.
        run: where the results go.
    """

    config: FinetuneConfig
    network: Network
    folder: LabelledFolder
    run: RunDir


class LabelledBatch(NamedTuple):
    """A microbatch of views.

    Attributes:
        images: uint8 [B, C, H, W].
        labels: [B].
        indices: of the images in the training set [B].
        positions: of the views in the step's whole batch: B of them.
        step: optimizer step, from 0.
        part: among the microbatches of the step.
    """

    images: Tensor
    labels: Tensor
    indices: Tensor
    positions: range
    step: int
    part: int


@dataclass(frozen=True)
class TrainViews:
    """The loader's transform: random crops, mirrored half of the time, and RandAugment.

    Attributes:
        size: (H, W) of the views.
        repeats: R, views of each image.
        augment: None = crops only.
    """

    size: tuple[int, int]
    repeats: int
    augment: RandAugment | None

    def __call__(self, images: Sequence[Tensor], draws: Sequence[torch.Generator]) -> tuple[Tensor, ...]:
        """Return uint8 views [b, R, C, H, W] of uint8 images [C, h, w], drawn from each one's generator."""
        views = [
            torch.stack([self._view(image, draw) for _ in range(self.repeats)])
            for image, draw in zip(images, draws, strict=True)
        ]
        return (torch.stack(views),)

    def _view(self, image: Tensor, draw: torch.Generator) -> Tensor:
        crop = random_resized_crop(image, self.size, draw)
        return crop if self.augment is None else self.augment(crop, int(torch.randint(2**32, (), generator=draw)))


def loop_settings(config: FinetuneConfig, images: int) -> LoopSettings:
    """Return what the loop does with so many training images; an epoch is as many full batches as they make."""
    protocol = config.protocol
    per_epoch = images // protocol.batch_size
    steps = protocol.epochs * per_epoch
    return LoopSettings(
        steps=steps,
        batch_size=protocol.batch_size,
        lr=protocol.lr,
        warmup_steps=min(round(protocol.warmup_epochs * per_epoch), steps - 1),
        schedule="cosine",
        min_lr=min(protocol.min_lr, protocol.lr),
        clip_norm=protocol.clip_norm,
        accumulate=protocol.accumulate,
        evaluate_every=config.running.evaluate_epochs * per_epoch,
        earlier_ends=tuple(epoch * per_epoch for epoch in config.ended),
    )


def train_views(config: FinetuneConfig, network: Network) -> TrainViews:
    """Return the loader's transform; RandAugment knows three channels only and is left out for others."""
    size, description = network.spec.image_size, config.protocol.randaugment
    augment = None
    if description != "none" and network.spec.channels == RGB:
        augment = RandAugment(description, size=size, mean=network.mean)
    return TrainViews(size, config.protocol.repeats, augment)


def batches(
    work: Work, settings: LoopSettings, first: int, *, unreadable: Path | None, share: Share = WHOLE
) -> Generator[LabelledBatch, None, None]:
    """Yield the microbatches of a process's share from step `first` on; what cannot be read is listed in `unreadable`.

    Raises:
        DataError: too many files cannot be read.
    """
    config, network, folder = work.config, work.network, work.folder
    protocol = config.protocol
    asked = RunConfig.model_validate({"runtime": {"workers": config.running.workers}})
    loader = BatchLoader(
        folder.train.paths,
        train_views(config, network),
        batch_size=protocol.images,
        seed=config.seed,
        total_steps=settings.steps,
        start_step=first,
        accumulate=protocol.accumulate,
        share=share,
        channels=network.spec.channels,
        scale=network.scale,
        workers=loader_workers(asked, select_device(config.device, flag="--device")),
        max_unreadable_share=config.running.max_unreadable_share,
        unreadable_file=unreadable,
        flags=Flags("--workers", "--max-unreadable-share"),
    )
    with closing(loader):
        for step, parts in groupby(loader, key=lambda batch: batch.step):
            for number, batch in enumerate(parts):
                yield _of_views(batch, folder, protocol, step, number)


def _of_views(
    batch: StackedBatch, folder: LabelledFolder, protocol: FinetuneProtocol, step: int, number: int
) -> LabelledBatch:
    """Return the views of a microbatch of images: the first view of every image, then the second of every image, ...

    In this order the views are numbered over all images of the step; those beyond the step's size are left out.
    """
    each, left = divmod(protocol.batch_size, protocol.images)
    first, last = (p * each + min(p, left) for p in (batch.positions.start, batch.positions.stop))
    most = len(batch.positions) * protocol.repeats
    rows = torch.arange(most).view(protocol.repeats, -1)  # [R, b]
    there = torch.arange(protocol.repeats)[:, None] * protocol.images + torch.tensor(batch.positions)  # [R, b]
    kept = rows[there < protocol.batch_size]  # [B]
    views = batch.tensors[0].transpose(0, 1).flatten(0, 1)  # [R*b, C, H, W]
    indices = batch.indices.repeat(protocol.repeats)[kept]  # [B]
    views = views if len(kept) == most else views[kept]
    return LabelledBatch(views, folder.train.labels[indices], indices, range(first, last), step, number)


def batch_loss(model: nn.Module, batch: LabelledBatch, work: Work) -> Tensor:
    """Return the soft cross-entropy of a microbatch after erasing and mixing, drawn from (seed, step, part)."""
    protocol, network = work.config.protocol, work.network
    draw = np.random.default_rng(derive_seed(work.config.seed, "mix", batch.step, batch.positions.start))
    device = next(model.parameters()).device
    images = normalise(to_device(batch.images, device), network.mean, network.std)  # [B, C, H, W]
    images = erased(images, protocol.erasing, draw)
    labels, classes = to_device(batch.labels, device), len(work.folder.classes)
    return mixed_loss(model, images, labels, protocol=protocol, classes=classes, draw=draw)


def mixed_loss(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    protocol: FinetuneProtocol,
    classes: int,
    draw: np.random.Generator,
) -> Tensor:
    """Return the soft cross-entropy of normalised images [B, C, H, W] with labels [B] after mixing."""
    images, targets = mixed(
        images,
        labels,
        classes,
        mixup=protocol.mixup,
        cutmix=protocol.cutmix,
        smoothing=protocol.label_smoothing,
        draw=draw,
    )
    return F.cross_entropy(model(images).float(), targets)
