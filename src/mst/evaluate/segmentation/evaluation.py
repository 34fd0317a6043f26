"""Semantic segmentation: train a head, with or without its backbone, and score it pixel by pixel.

Letters: C channels, H W pixels, K classes.
"""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from mst.checkpoint.compare import FIRST_IMAGE
from mst.engine.schedule import Checkpointing, LoopSettings
from mst.engine.supervised import Begun, PreparedTraining, TrainContext, fit
from mst.errors import DataError, UsageError
from mst.evaluate.common.features import FeatureSettings, device_of, fingerprint, frozen, progress_bar, used_precision
from mst.evaluate.common.metrics import SegmentationScores, class_counts, confusion_matrix
from mst.evaluate.common.model_files import ranges_in_use
from mst.evaluate.common.protocol import IMAGENET_MEAN, IMAGENET_STD, fitting_size
from mst.evaluate.common.uncertainty import segmentation_se
from mst.evaluate.segmentation.augment import Augmentation
from mst.evaluate.segmentation.checks import compare_sets, read_pairs, usable_pairs
from mst.evaluate.segmentation.data import NO_CLASS, SegmentationData, SegmentationSet
from mst.evaluate.segmentation.heads import HeadShape
from mst.evaluate.segmentation.inference import View, predict_mask
from mst.evaluate.segmentation.model import Segmenter
from mst.evaluate.segmentation.patches import TokenTraining, train_on_tokens
from mst.evaluate.segmentation.pictures import Watch
from mst.evaluate.segmentation.training import HeadTraining, Task, check_fits, class_weights, segmenter_training
from mst.model.backbone import Backbone
from mst.runtime.device import select_precision
from mst.runtime.identity import CONTENTS
from mst.runtime.limits import check_numbers
from mst.runtime.seeding import derive_seed
from mst.runtime.storage.results import Result
from mst.runtime.storage.rundir import RunDir

SETTINGS = FeatureSettings(forward_batch=16)
"""Where none are given: images of a segmentation are large."""
TOKEN_LR, HEAD_LR = 1e-2, 1e-3
"""Default learning rates: of the linear layer on cached tokens, and of everything else."""


@dataclass(frozen=True)
class SegmentationProtocol:
    """Settings of a segmentation that change its numbers.

    Attributes:
        size: (H, W) of the network's input; None = the first training image's, each side to the nearest multiple of
            the patch. Scores are taken at each mask's own size.
        stride: None = every image is resized to `size`. Else the image keeps its resolution and is looked at in
            windows of `size`, these distances (vertical, horizontal) apart.
        steps: optimizer steps.
        batch_size: images per step.
        lr: highest learning rate; None = 1e-2 for the cached linear layer, 1e-3 else.
        weight_decay: none on biases, norms and embeddings.
        loss_stride: the loss is taken on every n-th pixel in both directions.
        class_weights: factor of each class in the loss; none = 1 for all.
        shape: which head.
        training: optimizer and rates of everything but the cached linear layer.
        augmentation: how training images vary; not for the cached linear layer.
    """

    size: tuple[int, int] | None = None
    stride: tuple[int, int] | None = None
    steps: int = 1000
    batch_size: int = 16
    lr: float | None = None
    weight_decay: float = 1e-4
    loss_stride: int = 4
    class_weights: tuple[float, ...] = ()
    shape: HeadShape = field(default_factory=HeadShape)
    training: HeadTraining = field(default_factory=HeadTraining)
    augmentation: Augmentation = field(default_factory=Augmentation)

    def __post_init__(self) -> None:
        check_numbers(self, "steps", "batch_size", "loss_stride", least=1)
        check_numbers(self, "weight_decay", least=0)
        check_numbers(self, "lr", above=0)
        together = self.batch_size // self.training.accumulate
        if together < 2 and self.shape.norm == "batch" and self.shape.head == "upernet":
            raise UsageError(
                f"--head upernet: a microbatch of {together} image has no statistics for batch norm: use --norm group"
            )

    @property
    def cached(self) -> bool:
        """Whether the backbone's tokens are computed once: a linear layer on whole images, backbone frozen."""
        return self.shape.head == "linear" and self.stride is None and not self.training.train_backbone

    def row(self) -> dict[str, Any]:
        """Return the settings as a result states them, without those that have no effect."""
        values = asdict(self)
        groups = {name: values.pop(name) for name in ("shape", "training", "augmentation")}
        values["lr"] = self.lr or (TOKEN_LR if self.cached else HEAD_LR)
        if not self.class_weights:
            values.pop("class_weights")
        if self.cached:
            values.pop("stride")
            return values
        return {**values, **groups["shape"], **groups["training"], **groups["augmentation"]}


def evaluate_segmentation(
    backbone: Backbone,
    data: SegmentationData,
    protocol: SegmentationProtocol | None = None,
    *,
    mean: tuple[float, ...] = IMAGENET_MEAN,
    std: tuple[float, ...] = IMAGENET_STD,
    settings: FeatureSettings | None = None,
    saving: Checkpointing | None = None,
    seed: int = 0,
    run: RunDir | None = None,
    begun: Begun | None = None,
    trained: Callable[[Segmenter, View], None] | None = None,
    watch: Watch | None = None,
) -> Result:
    """Train a head on a backbone and score it on the validation images; the backbone itself stays as it is.

    Args:
        backbone: on its device; trained as a copy, or not at all.
        data: training and validation images with masks.
        protocol: head, sizes, training.
        mean: of the images' channels, in [0, 1].
        std: of the images' channels.
        settings: threads, compute type, progress.
        saving: checkpoints of the training; the cached linear layer has none.
        seed: of the head's weights and all draws.
        run: folder for the rows of the training.
        begun: called with the training's identity before its first step.
        trained: called with the trained segmenter before it is scored.
        watch: called with every validation image, its mask and the prediction.

    Returns:
        Result with `miou`, `macc`, `aacc` in percent, each with its standard error `_se` by bootstrap over the
        validation images; `extra["per_class"]` has IoU and accuracy of each class (None
        where the class does not occur).

    Raises:
        UsageError: the size is no multiple of the patch, a split is empty, the head does not go with the backbone.
        DataError: a mask has another size than its image or a value that is no class.
    """
    protocol, settings = protocol or SegmentationProtocol(), settings or SETTINGS
    work = _work(backbone, data, protocol, settings, mean=mean, std=std, seed=seed)
    compare_sets(data)
    val, val_left_out = usable_pairs(data, data.val, settings)
    work = replace(work, data=replace(data, val=val))
    extra: dict[str, Any] = {}
    if protocol.cached:
        train_left_out = _train_cached(work)
    else:
        train, train_left_out = usable_pairs(data, data.train, settings)
        work = replace(work, data=replace(work.data, train=train))
        extra |= asdict(fit(*_training(work, saving or Checkpointing(), run, begun)))
    extra |= _counts(data, train_left_out, val_left_out)
    if trained is not None:
        trained(work.segmenter, work.view)
    return _result(work, score(work.segmenter, work.data, work.view, settings, watch), extra)


def prepared_segmentation(
    backbone: Backbone,
    data: SegmentationData,
    protocol: SegmentationProtocol,
    *,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    settings: FeatureSettings,
    saving: Checkpointing,
    seed: int,
) -> PreparedTraining[Any]:
    """Return the training that `evaluate_segmentation` carries out, to look at one of its steps.

    Raises:
        UsageError, DataError: as `evaluate_segmentation`.
    """
    work = _work(backbone, data, protocol, settings, mean=mean, std=std, seed=seed)
    train, _ = usable_pairs(data, data.train, settings)
    return _training(replace(work, data=replace(data, train=train)), saving)


def _counts(data: SegmentationData, train: list[str], val: list[str]) -> dict[str, Any]:
    """Return how many pairs were learnt from, scored and left out, and a line for each that was left out."""
    listed = [len(pairs) + len(pairs.missing) for pairs in (data.train, data.val)]
    counts: dict[str, Any] = {"train_images": listed[0] - len(train), "val_images": listed[1] - len(val)}
    if train or val:
        counts |= {"left_out": {"train": len(train), "val": len(val)}, "unreadable": [*train, *val]}
    return counts


@dataclass(frozen=True)
class _Work:
    """What is trained, on what, and how."""

    segmenter: Segmenter
    data: SegmentationData
    view: View
    protocol: SegmentationProtocol
    settings: FeatureSettings
    seed: int


def _result(work: _Work, counts: Tensor, extra: dict[str, Any]) -> Result:
    """Return the row of an evaluation from the counts of its images [n, 3, K]."""
    scores = SegmentationScores.from_counts(counts.sum(0))
    view, data, protocol = work.view, work.data, work.protocol
    described = {
        "size": list(view.size),
        "ignore_index": data.ignore_index,
        "mean": view.mean,
        "std": view.std,
        "precision": used_precision(work.settings, work.segmenter),
        **ranges_in_use(data.train.scale),
    }
    return Result(
        task="patch_segmentation" if protocol.cached else "segmentation",
        metrics={
            **{"miou": scores.miou, "macc": scores.macc, "aacc": scores.aacc},
            **segmentation_se(counts, seed=work.seed),
        },
        protocol={**protocol.row(), **described},
        seed=work.seed,
        extra={**extra, "per_class": per_class(scores, data.classes)},
    )


def _work(
    backbone: Backbone,
    data: SegmentationData,
    protocol: SegmentationProtocol,
    settings: FeatureSettings,
    *,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    seed: int,
) -> _Work:
    """Put a new head on the backbone, or on a copy of it to train; refuse settings that do not fit together."""
    if min(len(data.train), len(data.val)) == 0:
        raise UsageError("segmentation needs at least one training and one validation image")
    size = protocol.size or fitting_size(first_image(data.train).shape[-2:], backbone.patch_size)
    view = View(size, protocol.stride, mean, std)
    view.check(backbone.patch_size)
    trained = protocol.training.train_backbone
    own, own_seed = copy.deepcopy(backbone) if trained else backbone, derive_seed(seed, "segmentation-head")
    segmenter = Segmenter(own, data.classes, protocol.shape, frozen=not trained, seed=own_seed)
    return _Work(segmenter, data, view, protocol, settings, seed)


def first_image(pairs: SegmentationSet) -> Tensor:
    """Return the first image [C, H, W] that can be read with its mask.

    Raises:
        DataError: there is none.
    """
    problem: DataError | None = None
    for index in range(len(pairs)):
        try:
            return pairs.read(index)[0]
        except DataError as error:
            problem = problem or error
    raise problem or DataError("no training image")


def _train_cached(work: _Work) -> list[str]:
    """Train the linear layer on tokens that are computed once; return a line for each pair that was left out."""
    protocol, data = work.protocol, work.data
    training = TokenTraining(
        protocol.steps,
        protocol.batch_size,
        protocol.lr or TOKEN_LR,
        protocol.weight_decay,
        protocol.loss_stride,
        class_weights(protocol.class_weights, len(data.classes)),
        work.seed,
    )
    return train_on_tokens(work.segmenter, data, work.view, training, work.settings)


def _training(
    work: _Work, saving: Checkpointing, run: RunDir | None = None, begun: Begun | None = None
) -> PreparedTraining[Any]:
    """Return the training of everything but the cached linear layer."""
    protocol, settings, given = work.protocol, work.settings, work.protocol.training
    device = device_of(work.segmenter)
    compute, _ = select_precision(settings.precision, device)
    loop = LoopSettings(
        steps=protocol.steps,
        batch_size=protocol.batch_size,
        lr=protocol.lr or HEAD_LR,
        warmup_steps=given.warmup_steps,
        schedule=given.schedule,
        min_lr=given.min_lr,
        clip_norm=given.clip_norm,
        accumulate=given.accumulate,
    )
    task = Task(
        data=work.data,
        view=work.view,
        loop=loop,
        weight_decay=protocol.weight_decay,
        loss_stride=protocol.loss_stride,
        class_weights=protocol.class_weights,
        training=given,
        augmentation=protocol.augmentation,
        workers=settings.workers,
    )
    identity = {
        **protocol.row(),
        **asdict(work.view),
        **ranges_in_use(work.data.train.scale),
        "seed": work.seed,
        "classes": work.segmenter.classes,
        "train_images": len(work.data.train),
        FIRST_IMAGE: work.data.train.name(0),
        "weights": fingerprint(work.segmenter.backbone),
        "precision": str(compute),
        CONTENTS: work.data.fingerprint().digest,
    }
    check_fits(work.segmenter, task, compute)
    plain = json.loads(json.dumps(identity))
    context = TrainContext(device, compute, work.seed, saving, plain, run=run, progress=settings.progress)
    return segmenter_training(work.segmenter, task, context if begun is None else replace(context, begun=begun))


def score(
    segmenter: Segmenter,
    data: SegmentationData,
    view: View,
    settings: FeatureSettings,
    watch: Watch | None = None,
) -> Tensor:
    """Return hits, pixels of each class and pixels predicted as it, of each validation image [n, 3, K].

    Each image is scored at its mask's own size.

    Raises:
        DataError: an image or a mask cannot be used.
    """
    counts: list[Tensor] = []
    pairs = read_pairs(data, data.val, settings.workers)
    with frozen(segmenter), progress_bar("scoring", len(data.val), shown=settings.progress) as advance:
        for index, (image, mask) in enumerate(pairs):
            name = data.val.name(index)
            prediction = predict_mask(segmenter, image, view, settings.precision, name)  # [H,W]
            confusion = confusion_matrix(prediction, mask, len(data.classes), ignore_index=NO_CLASS)
            counts.append(class_counts(confusion))
            if watch is not None:
                watch(name, image, mask, prediction)
            advance(1)
    return torch.stack(counts)


def per_class(scores: SegmentationScores, classes: tuple[str, ...]) -> list[dict[str, Any]]:
    """Return name, IoU and accuracy of each class; None where it has none."""
    return [
        {"name": name, "iou": None if math.isnan(iou) else iou, "accuracy": None if math.isnan(acc) else acc}
        for name, iou, acc in zip(classes, scores.iou, scores.accuracy, strict=True)
    ]
