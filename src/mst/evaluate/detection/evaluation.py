"""Detection and instance masks: Mask R-CNN trained on a backbone, scored with COCO's metrics.

Letters: B images, C channels, H W pixels.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torchvision.models.detection import MaskRCNN

from mst.data.background import read_in_threads
from mst.data.decoding import UnreadableImage
from mst.engine.schedule import Checkpointing
from mst.engine.supervised import Begun, PreparedTraining, TrainContext, fit
from mst.errors import DataError
from mst.evaluate.coco.masks import coco_mask_library
from mst.evaluate.coco.reading import CocoImage, CocoSet, check_images, images_of, with_classes_of
from mst.evaluate.common.content import tell_shared
from mst.evaluate.common.features import FeatureSettings, device_of, fingerprint, frozen, progress_bar, used_precision
from mst.evaluate.common.model_files import ranges_in_use, ranges_to_keep
from mst.evaluate.common.protocol import IMAGENET_MEAN, IMAGENET_STD
from mst.evaluate.common.pyramid import Pyramid
from mst.evaluate.detection.detector import DetectorShape, build_detector, check_proportions, find_objects
from mst.evaluate.detection.file import DetectorDescription, save_detector
from mst.evaluate.detection.memory import check_fits
from mst.evaluate.detection.metrics import Detection, coco_metrics
from mst.evaluate.detection.training import (
    TrainingSettings,
    detector_optimizer,
    detector_training,
    trainable_images,
)
from mst.model.backbone import Backbone
from mst.model.build import build_backbone
from mst.paths import user_path
from mst.runtime.device import select_precision
from mst.runtime.identity import CONTENTS, DataIdentity, together
from mst.runtime.logging import warn
from mst.runtime.seeding import drawn_from
from mst.runtime.storage.files import check_folder
from mst.runtime.storage.results import Result
from mst.runtime.storage.rundir import RunDir

Watcher = Callable[[CocoImage, Tensor, list[Detection]], None]
"""Called with each validation image, its pixels uint8 [C, H, W] and what was found: for pictures."""


@dataclass(frozen=True)
class DetectionProtocol:
    """Settings of the detection evaluation that change its numbers."""

    training: TrainingSettings = field(default_factory=TrainingSettings)
    shape: DetectorShape = field(default_factory=DetectorShape)


@dataclass(frozen=True)
class DetectionData:
    """A training and a validation set; the classes are those of training, found in validation by their names.

    Raises:
        DataError: validation has objects of a class that training does not know, or no objects.
    """

    train: CocoSet
    val: CocoSet

    def __post_init__(self) -> None:
        object.__setattr__(self, "val", with_classes_of(self.train, self.val))
        if not any(not found.crowd for image in self.val.images for found in image.objects):
            raise DataError(f"{self.val.file}: no image has an object to be found, so there is nothing to score")

    def fingerprint(self) -> DataIdentity:
        """Return the identity of both sets."""
        return together("", self.train.fingerprint(), self.val.fingerprint())

    @property
    def masks(self) -> bool:
        """Whether masks are learnt and scored; without, boxes only."""
        return self.train.masks and self.val.masks


def evaluate_detection(
    backbone: Backbone,
    data: DetectionData,
    protocol: DetectionProtocol | None = None,
    *,
    mean: tuple[float, ...] = IMAGENET_MEAN,
    std: tuple[float, ...] = IMAGENET_STD,
    settings: FeatureSettings | None = None,
    saving: Checkpointing | None = None,
    seed: int = 0,
    save_to: Path | None = None,
    begun: Begun | None = None,
    watch: Watcher | None = None,
) -> tuple[Result, list[Detection]]:
    """Train Mask R-CNN on a copy of the backbone and score it on the validation images.

    Args:
        backbone: stays as it is.
        data: training and validation images.
        protocol: training and sizes.
        mean: normalisation of the images.
        std: normalisation of the images.
        settings: compute type of backbone and pyramid, progress.
        saving: checkpoints of the training.
        seed: of the heads' weights and of all draws.
        save_to: folder for the trained detector, written before it is scored.
        begun: called with the training's identity before its first step.
        watch: called with each validation image.

    Returns:
        Result with `ap_box`, ..., `ap_mask`, ... in percent, none of masks where objects have none; and all detections.

    Raises:
        UsageError: the backbone's patches do not fit, or checkpoints are of another training.
        DataError: an image cannot be read, or is of another size.
        MissingExtra: the extra `detection` is not installed.
    """
    protocol, settings = protocol or DetectionProtocol(), settings or FeatureSettings()
    images = trainable_images(data.train)
    _check(images, data, backbone.spec.channels, protocol.shape, save_to)
    prepared = prepared_detection(
        backbone, data, protocol, mean=mean, std=std, settings=settings, saving=saving or Checkpointing(), seed=seed
    )
    if begun is not None:
        prepared = prepared._replace(context=replace(prepared.context, begun=begun))
    detector = prepared.training.model
    assert isinstance(detector, MaskRCNN)
    check_fits(detector, images, protocol.training)
    trained = fit(*prepared)
    if save_to is not None:
        save_detector(save_to, detector, _description(backbone, data, protocol, mean, std))
    found = detect(detector, data.val, channels=backbone.spec.channels, progress=settings.progress, watch=watch)
    described = {**_described(protocol, data), "mean": mean, "std": std}
    used = {**described, "precision": used_precision(settings, backbone)}
    extra = {**_counts(data, len(images)), **asdict(trained)}
    return _result(used, data, found, extra, seed), found


def prepared_detection(
    backbone: Backbone,
    data: DetectionData,
    protocol: DetectionProtocol,
    *,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    settings: FeatureSettings,
    saving: Checkpointing,
    seed: int,
) -> PreparedTraining[Any]:
    """Return the training that `evaluate_detection` carries out; its rows go beside its checkpoints.

    Raises:
        UsageError: the backbone's patches do not fit.
        DataError: no image has an object.
    """
    images = trainable_images(data.train)
    detector = _detector(backbone, data, protocol, settings, mean=mean, std=std, seed=seed)
    described = {**_described(protocol, data), "mean": mean, "std": std, "precision": settings.precision}
    start = {"weights": fingerprint(backbone), "seed": seed, "images": len(images), CONTENTS: data.fingerprint().digest}
    context = TrainContext(
        device_of(backbone),
        torch.float32,
        seed,
        saving,
        json.loads(json.dumps({**described, **start})),
        run=rows_of(saving),
        progress=settings.progress,
    )
    return detector_training(
        detector,
        detector_optimizer(detector, protocol.training),
        images,
        protocol.training,
        context,
        channels=backbone.spec.channels,
        workers=settings.workers,
    )


def rows_of(saving: Checkpointing) -> RunDir | None:
    """Return the folder of the training's rows: that of its checkpoints, if there is one."""
    return RunDir(user_path(saving.checkpoints)) if saving.checkpoints else None


def _description(
    backbone: Backbone,
    data: DetectionData,
    protocol: DetectionProtocol,
    mean: tuple[float, ...],
    std: tuple[float, ...],
) -> DetectorDescription:
    train = data.train
    return DetectorDescription(
        backbone.spec, protocol.shape, train.classes, train.category_ids, mean, std, data.masks, _ranges(data)
    )


def _result(
    described: dict[str, Any], data: DetectionData, found: list[Detection], extra: dict[str, Any], seed: int
) -> Result:
    metrics = coco_metrics(data.val, found, masks=data.masks, seed=seed)
    return Result("detection", metrics, described, seed=seed, extra={**extra, "detections": len(found)})


def _check(
    images: Sequence[CocoImage], data: DetectionData, channels: int, shape: DetectorShape, save_to: Path | None
) -> None:
    """Refuse, before a training of hours, what would be an error after it; warn of what makes a result doubtful."""
    coco_mask_library()
    if save_to is not None:
        check_folder(save_to, "--save-model")
    check_images(images, channels=channels, decoded=1)
    check_images(data.val.images, channels=channels)
    for image in (*images, *data.val.images):
        check_proportions(image, shape)
    bare = next((coco.file for coco in (data.train, data.val) if not coco.masks), None)
    if bare is not None:
        warn(f"{bare}: objects have no masks, so that boxes only are learnt and scored: there is no AP of masks")
    if data.val.file != data.train.file:
        tell_shared(*([*images_of(part).files()] for part in (images, data.val.images)))


def _described(protocol: DetectionProtocol, data: DetectionData) -> dict[str, Any]:
    files = [data.train.file.name, data.val.file.name]
    described = {**asdict(protocol.training), **asdict(protocol.shape), "data": files}
    return {**described, **ranges_in_use(data.train.images[0].scale)}


def _ranges(data: DetectionData) -> dict[str, list[float]] | None:
    return ranges_to_keep(data.train.images[0].scale)


def _counts(data: DetectionData, train_images: int) -> dict[str, Any]:
    return {
        "train_images": train_images,
        "val_images": len(data.val),
        "classes": len(data.val.classes),
        "left_out": {"train": dict(data.train.left_out), "val": dict(data.val.left_out)},
        "turned_by_exif": {"train": dict(data.train.frames), "val": dict(data.val.frames)},
    }


def _detector(
    backbone: Backbone,
    data: DetectionData,
    protocol: DetectionProtocol,
    settings: FeatureSettings,
    *,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    seed: int,
) -> MaskRCNN:
    """Return the untrained detector on the backbone's device; its heads are drawn from `seed`."""
    device = device_of(backbone)
    compute, _ = select_precision(settings.precision, device)
    shape = protocol.shape
    own = _copy(backbone, protocol.training.drop_path)
    with drawn_from(torch.device("cpu"), seed, "detector-weights"):
        pyramid = Pyramid(own, channels=shape.channels, frozen=protocol.training.frozen, compute=compute)
        detector = build_detector(pyramid, len(data.train.classes), shape, mean=mean, std=std, masks=data.masks)
    return detector.to(device)


def _copy(backbone: Backbone, drop_path: float) -> Backbone:
    """Return a copy; with stochastic depth it is built anew, because timm sets that when it builds a network."""
    if not drop_path:
        return copy.deepcopy(backbone)
    built = build_backbone(backbone.spec, drop_path=drop_path)
    built.load_state_dict(backbone.state_dict())
    return built


def detect(
    detector: MaskRCNN, coco: CocoSet, *, channels: int, progress: bool = True, watch: Watcher | None = None
) -> list[Detection]:
    """Return what a detector finds in every image, at most 100 objects in each.

    Raises:
        DataError: an image cannot be read: leaving it out would change the numbers.
    """
    device = device_of(detector)
    found: list[Detection] = []

    def read(image: CocoImage) -> Tensor:
        try:
            return image.read(channels=channels)
        except UnreadableImage as problem:
            raise DataError(f"a validation image cannot be read: {problem}") from problem

    pictures = read_in_threads(read, coco.images)
    with frozen(detector), closing(pictures), progress_bar("detecting", len(coco), shown=progress) as advance:
        for image, pixels in zip(coco.images, pictures, strict=True):
            detections = find_objects(detector, image, pixels.to(device).float() / 255)
            if watch is not None:
                watch(image, pixels, detections)
            found += detections
            advance(1)
    return found
