"""Linear classification of frozen features, with all learning rates trained in one pass.

Source: DINO (Caron et al. 2021), section 4.1 and its code (SGD with momentum 0.9, no weight decay, cosine to 0, CLS of
the last 4 blocks); the sweep in one pass follows DINOv2 (Oquab et al. 2023), appendix B. Differs: the reported rate
is chosen on a held-out part of the training set; the best rate on the validation set is reported beside it.
Letters: n samples, B batch, D features, R learning rates, C classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from mst.data.sampler import sample_order
from mst.errors import RunFailure, UsageError
from mst.evaluate.classification.linear_heads import LinearHeads
from mst.evaluate.classification.outcome import TOP5_ABOVE, Outcome, Watch
from mst.evaluate.common.feature_store import FeatureMemory, FeatureSource, LastBlocks
from mst.evaluate.common.features import (
    FeatureFunction,
    Features,
    FeatureSettings,
    counts,
    device_of,
    forward_batch,
    frozen,
    progress_bar,
    read_batches,
    used_precision,
)
from mst.evaluate.common.finite import check_finite
from mst.evaluate.common.image_sets import ImageSet, LabelledSets
from mst.evaluate.common.metrics import accuracy
from mst.evaluate.common.pooling import Pool, blocks_in, check_pool
from mst.evaluate.common.protocol import ImageTransform, LowShot, random_resized_crop
from mst.runtime.limits import check_numbers
from mst.runtime.noise import accuracy_se
from mst.runtime.seeding import generator
from mst.runtime.storage.results import Result

if TYPE_CHECKING:
    from mst.model.backbone import Backbone


@dataclass(frozen=True)
class LinearProtocol:
    """Settings of the linear probe that change its numbers.

    Attributes:
        lrs: learning rates to try, each for a batch of 256 images; the best on the held-out part is reported.
        epochs: passes over the training features.
        batch_size: samples per step (DINO's 1024); at most the training images.
        momentum: of SGD.
        blocks: how many last blocks give their features, side by side (fewer if the backbone has fewer).
        pool: of a block, cls: the CLS token; mean, std, max, min: of the patch tokens; several side by side.
        mode: `cached` computes the features of the centre crops once; `augmented` (DINO's) draws a random resized
            crop and a flip of each image in every epoch: one pass of the backbone per epoch.
        held_out_share: share of each class's training images on which the learning rate is chosen.
        labels: how many training labels are used.
    """

    lrs: tuple[float, ...] = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3, 1.0)
    epochs: int = 100
    batch_size: int = 1024
    momentum: float = 0.9
    blocks: int = 4
    pool: Pool = ("cls",)
    mode: Literal["cached", "augmented"] = "cached"
    held_out_share: float = 0.1
    labels: LowShot = field(default_factory=LowShot)

    def __post_init__(self) -> None:
        check_numbers(self, "lrs", above=0)
        check_numbers(self, "epochs", "batch_size", "blocks", least=1)
        check_pool(self.pool)
        check_numbers(self, "momentum", least=0, most=1)
        if not 0.0 < self.held_out_share < 1.0:
            raise UsageError(f"--held-out-share {self.held_out_share}: must lie between 0 and 1")


EpochBatches = Callable[[int], Iterator[tuple[Tensor, Tensor]]]
"""epoch -> (training positions [B], features [B, D]) of every batch in that epoch."""


def held_out_mask(labels: Tensor, share: float, *, seed: int) -> Tensor:
    """Return which training samples the learning rate is chosen on [n], bool.

    These are `share` of each class: at least one sample of a class that has two or more, none of a class with one.
    """
    mask = torch.zeros(len(labels), dtype=torch.bool)
    for label in torch.unique(labels).tolist():
        members = (labels == label).nonzero().flatten()
        count = min(max(1, round(share * len(members))), len(members) - 1)
        order = torch.randperm(len(members), generator=generator(seed, "held-out", label))
        mask[members[order[:count]]] = True
    return mask


def train_heads(
    batches: EpochBatches,
    labels: Tensor,
    held_out: Tensor,
    protocol: LinearProtocol,
    *,
    num_classes: int,
    num_features: int,
    device: torch.device,
    seed: int,
    progress: bool = True,
) -> tuple[LinearHeads, LinearHeads]:
    """Train a classifier for each learning rate, all in one pass per epoch; and a second set without held-out samples.

    Args:
        batches: gives the features of each epoch.
        labels: [n], int64.
        held_out: samples that the second set does not learn from [n], bool.
        protocol: learning rates, epochs, batch size, momentum.
        num_classes: C.
        num_features: D.
        device: where the classifiers live.
        seed: of their initialisation.
        progress: show a bar.

    Returns:
        Classifiers trained on all samples, and classifiers trained without the held-out ones.
    """
    batch_size = min(protocol.batch_size, len(labels))
    rates = [lr * batch_size / 256 for lr in protocol.lrs]
    full, partial = (
        LinearHeads(
            num_features,
            num_classes,
            rates,
            momentum=protocol.momentum,
            generator=generator(seed, "linear-head"),
            device=device,
        )
        for _ in range(2)
    )
    steps, step = protocol.epochs * math.ceil(len(labels) / batch_size), 0
    with progress_bar("linear probe", steps, shown=progress) as advance:
        for epoch in range(protocol.epochs):
            for positions, features in batches(epoch):
                factor = 0.5 * (1 + math.cos(math.pi * step / steps))
                x, y = features.to(device), labels[positions].to(device)  # [B,D], [B]
                fit = ~held_out[positions].to(device)  # [B]
                full.step(x, y, factor)
                partial.step(x[fit], y[fit], factor)
                step += 1
                advance(1)
    return full, partial


def cached_batches(train: Features, *, batch_size: int, seed: int) -> EpochBatches:
    """Return batches of the same features in a new order for every epoch."""

    def batches(epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        order = sample_order(seed, epoch, len(train.labels), purpose="linear-order")
        for start in range(0, len(order), batch_size):
            positions = order[start : start + batch_size]
            yield positions, train.features[positions]

    return batches


@dataclass(frozen=True)
class _Crops:
    """A random crop of each image of a set, in the order of one epoch."""

    images: ImageSet
    order: Sequence[int]
    size: tuple[int, int]
    seed: int
    epoch: int

    def __len__(self) -> int:
        return len(self.order)

    def name(self, place: int) -> str:
        return self.images.name(self.order[place])

    def read(self, place: int) -> Tensor:
        index = self.order[place]
        return random_resized_crop(self.images.read(index), self.size, generator(self.seed, "crop", self.epoch, index))


def augmented_batches(
    backbone: Backbone,
    images: ImageSet,
    transform: ImageTransform,
    function: FeatureFunction,
    settings: FeatureSettings,
    *,
    batch_size: int,
    seed: int,
) -> EpochBatches:
    """Return batches of features of random resized crops and flips, drawn anew for each image in every epoch."""

    def batches(epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        order = sample_order(seed, epoch, len(images), purpose="linear-order")

        shuffled = _Crops(images, order.tolist(), transform.size, seed, epoch)
        ready, waiting = torch.empty(0, dtype=torch.int64), torch.empty(0)
        for batch in read_batches(shuffled, transform.normalise, settings):
            if batch.indices:
                with frozen(backbone):
                    features = forward_batch(backbone, batch.images, function, settings.precision).flatten(1)  # [B,D]
                check_finite(features, backbone, [shuffled.name(index) for index in batch.indices], "features")
                ready, waiting = torch.cat([ready, order[batch.indices]]), torch.cat([waiting.to(features), features])
            while len(ready) >= batch_size:
                yield ready[:batch_size], waiting[:batch_size]
                ready, waiting = ready[batch_size:], waiting[batch_size:]
        if len(ready):
            yield ready, waiting

    return batches


def evaluate_linear(
    backbone: Backbone,
    data: LabelledSets,
    transform: ImageTransform,
    protocol: LinearProtocol | None = None,
    *,
    settings: FeatureSettings | None = None,
    features: Path | FeatureMemory | None = None,
    seed: int = 0,
    watch: Watch | None = None,
) -> Result:
    """Train linear classifiers on frozen features of the training images, score them on the validation images.

    `features` is a folder that keeps the features of the centre crops; `watch` is called with the answers.

    Returns:
        Result with the metrics of `Outcome` (learning rate chosen on the held-out part of train, then learnt from all
        of it), `top1_best_on_val` (what DINO prints) and `top1_held_out`, in percent, with standard errors `_se`;
        `extra["lr"]` is the chosen rate, `extra["rates"]` has one row for each.

    Raises:
        UsageError: one class only, or several learning rates but no class with two training images to choose one on.
    """
    protocol, settings = protocol or LinearProtocol(), settings or FeatureSettings()
    data.check_classes()
    chosen, classes = protocol.labels.select(data.train.labels, seed=seed), data.classes
    source = FeatureSource.kept_in(features, backbone, transform, settings, protocol.pool)
    train = source.read("training", data.train, chosen, blocks=protocol.blocks)
    val = source.read("validation", data.val, blocks=protocol.blocks)
    held_out = held_out_mask(train.labels, protocol.held_out_share, seed=seed)
    if len(protocol.lrs) > 1 and not bool(held_out.any()):
        raise UsageError("no class has two training images to choose a learning rate on: name one with --lrs")
    images = data.train.subset([chosen[position] for position in train.positions])
    batches = _batches(backbone, train, images, transform, protocol, settings, seed)
    full, partial = train_heads(
        batches,
        train.labels,
        held_out,
        protocol,
        num_classes=len(data.classes),
        num_features=train.features.shape[1],
        device=device_of(backbone),
        seed=seed,
        progress=settings.progress,
    )
    on_val = full.ranks(val.features, val.labels)  # [R,n]
    on_held_out = partial.ranks(train.features[held_out], train.labels[held_out])  # [R,h]
    metrics, rates, lr = summarise(protocol.lrs, on_val, on_held_out, full.finite(), top5=len(classes) > TOP5_ABOVE)
    picked = protocol.lrs.index(lr)
    shares = full.probabilities(val.features, picked)
    outcome = Outcome(shares, val.labels, on_val[picked], val.names, val.positions, classes)
    outcome.tell(watch)
    used = {"blocks": blocks_in(train.features, protocol.pool, backbone.embed_dim), "transform": asdict(transform)}
    return Result(
        task="linear",
        metrics={**outcome.metrics(), **metrics},
        protocol={**asdict(protocol), **used, "precision": used_precision(settings, backbone)},
        seed=seed,
        extra={**counts(train, val, data.classes), "lr": lr, "rates": rates, **outcome.extra()},
    )


def _batches(  # noqa: PLR0917
    backbone: Backbone,
    train: Features,
    readable: ImageSet,
    transform: ImageTransform,
    protocol: LinearProtocol,
    settings: FeatureSettings,
    seed: int,
) -> EpochBatches:
    """Return the batches that the mode asks for, of features that are there or of crops of the readable images."""
    batch_size = min(protocol.batch_size, len(train.labels))
    if protocol.mode == "cached":
        return cached_batches(train, batch_size=batch_size, seed=seed)
    function = LastBlocks(protocol.blocks, protocol.pool)
    return augmented_batches(backbone, readable, transform, function, settings, batch_size=batch_size, seed=seed)


def summarise(
    lrs: Sequence[float], on_val: Tensor, on_held_out: Tensor, finite: Tensor | None = None, *, top5: bool = True
) -> tuple[dict[str, float], list[dict[str, float]], float]:
    """Return metrics with standard errors, a row for each learning rate, and the chosen rate, from ranks [R, n].

    Of equally good learning rates the lowest is chosen. A rate whose classifier diverged (not `finite` [R]) never is.

    Raises:
        RunFailure: all of them diverged.
    """
    good = [True] * len(lrs) if finite is None else finite.tolist()
    if not any(good):
        raise RunFailure(f"the linear probe diverged at every learning rate from {min(lrs):g} on: give lower --lrs")
    tops = (1, 5) if top5 else (1,)
    rows = [
        {"lr": lr, **{f"top{top}": accuracy(ranks, top) for top in tops}} for lr, ranks in zip(lrs, on_val, strict=True)
    ]
    sound = [row for row, made in zip(rows, good, strict=True) if made]
    best = picked = max(sound, key=lambda row: (row["top1"], -row["lr"]))
    if on_held_out.shape[1]:
        for row, ranks in zip(rows, on_held_out, strict=True):
            row["top1_held_out"] = accuracy(ranks, 1)
        picked = max(sound, key=lambda row: (row["top1_held_out"], -row["lr"]))
    metrics = {f"top{top}": picked[f"top{top}"] for top in tops}
    metrics |= {f"top{top}_best_on_val": best[f"top{top}"] for top in tops}
    if "top1_held_out" in picked:
        metrics["top1_held_out"] = picked["top1_held_out"]
    counted = {name: on_held_out if name == "top1_held_out" else on_val for name in metrics}
    metrics |= {f"{name}_se": round(accuracy_se(metrics[name], of.shape[1]), 6) for name, of in counted.items()}
    return metrics, rows, picked["lr"]
