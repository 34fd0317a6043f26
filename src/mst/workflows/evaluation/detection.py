"""Detection with Mask R-CNN on a backbone, from a COCO folder to a row of results."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mst.data.sources.mixed import MixedImages
from mst.data.value_range import check_range
from mst.engine.schedule import Checkpointing
from mst.engine.supervised import PreparedTraining
from mst.errors import UsageError
from mst.evaluate.coco.reading import CocoSet, find_coco, read_coco
from mst.evaluate.common.features import FeatureSettings
from mst.evaluate.common.orientation import Frame
from mst.evaluate.detection import evaluation as detection
from mst.evaluate.detection.evaluation import DetectionData, DetectionProtocol
from mst.evaluate.detection.metrics import Detection, detection_records
from mst.evaluate.detection.pictures import detection_writer
from mst.model.backbone import Backbone
from mst.paths import PathText, user_path
from mst.runtime.limits import check_numbers
from mst.runtime.storage.files import check_folder
from mst.runtime.storage.outputs import Outputs
from mst.runtime.storage.results import Result
from mst.workflows.evaluation.asked import AskedTraining
from mst.workflows.evaluation.inputs import EvaluationInput
from mst.workflows.subject import Subject


@dataclass(frozen=True)
class DetectionOptions:
    """Parts of the data, and what is written beside the row.

    Attributes:
        train_split: annotations/instances_SPLIT.json to learn from.
        val_split: annotations/instances_SPLIT.json to score on.
        train_limit: at most this many training images, the first ones; None = all.
        val_limit: at most this many validation images, the first ones; None = all.
        strict: refuse annotation files with records that do not fit; else such records are left out.
        annotations: whether boxes and masks of images with an EXIF orientation belong to the image as it is displayed
            or as it is stored; None = as the sizes in the file tell.
        value_range: black and white among values that are not stored in 8 bits; None = as the backbone was trained.
        detections: JSON file for all detections in COCO's result format.
        save_model: folder for the trained detector, for `mst predict detection`; None = --out, if it is given.
        pictures: folder for a picture of each validation image: truth left, found right; None = pictures/detection of
            --out or the run folder, where `mst report` looks for them.
        picture_limit: at most this many pictures; 0 = none.
    """

    train_split: str = "train"
    val_split: str = "val"
    train_limit: int | None = None
    val_limit: int | None = None
    strict: bool = False
    annotations: Frame | None = None
    value_range: tuple[float, float] | None = None
    detections: PathText | None = None
    save_model: PathText | None = None
    pictures: PathText | None = None
    picture_limit: int = 24

    def __post_init__(self) -> None:
        check_numbers(self, "train_limit", "val_limit", least=1)
        check_range(self.value_range)
        if self.detections and (user_path(self.detections).is_dir() or user_path(self.detections).suffix != ".json"):
            raise UsageError(f"--detections {self.detections}: name a .json file")
        if self.detections:
            check_folder(user_path(self.detections).parent, "--detections")
        check_numbers(self, "picture_limit", least=0)


def evaluate_detection(
    backbone: str | Path | Backbone,
    data: str | Path | DetectionData,
    *,
    protocol: DetectionProtocol | None = None,
    options: DetectionOptions | None = None,
    saving: Checkpointing | None = None,
    settings: FeatureSettings | None = None,
    out: str | Path | None = None,
    device: str = "auto",
    seed: int = 0,
) -> Result:
    """Train Mask R-CNN on a backbone and score it; the backbone itself stays as it is.

    Args:
        backbone: as for `evaluate_knn`.
        data: a folder with `annotations/instances_train.json`, `annotations/instances_val.json` and images, or sets.
        protocol: training and sizes.
        options: splits, limits, files written beside the row.
        saving: checkpoints of the training.
        settings: compute type, progress.
        out: as for `evaluate_knn`.
        device: as for `evaluate_knn`.
        seed: of the heads' weights, of all draws, and of the weights after `random:`.

    Returns:
        `Result` with `ap_box`, `ap50_box`, ..., `ap_mask`, ... in percent.

    Raises:
        UsageError: no such data, a record that does not fit, a patch size without a pyramid, ...
        MissingExtra: the extra `detection` is not installed.
    """
    given = EvaluationInput[DetectionData](backbone, data, settings, out, device, seed)
    asked = AskedTraining(
        given, protocol or DetectionProtocol(), options or DetectionOptions(), saving or Checkpointing()
    )
    subject, options = given.load(), asked.options
    sets = _sets(asked, subject)
    identity = sets.fingerprint()
    mean, std = subject.mean_std
    pictures = subject.pictures("detection", options.pictures)
    watch = detection_writer(pictures, options.picture_limit, sets.val.classes) if pictures else None
    keep_records = _records_writer(options.detections)
    result, found = detection.evaluate_detection(
        subject.backbone,
        sets,
        protocol,
        mean=mean,
        std=std,
        settings=settings,
        saving=saving,
        seed=seed,
        save_to=given.model_folder(options.save_model),
        begun=asked.note("detection", detection.rows_of(asked.saving)),
        watch=watch,
    )
    result = subject.record(result, data, identity)
    keep_records(found, sets.val)
    return result


def _records_writer(place: str | None) -> Callable[[list[Detection], CocoSet], None]:
    """Return the function that writes all detections to `place`; a file there that is not the command's is refused."""
    if place is None:
        return lambda found, val: None
    target = user_path(place)
    records = Outputs(target.parent, "evaluate detection", "--detections")
    records.check([target.name])

    def write(found: list[Detection], val: CocoSet) -> None:
        records.write(target.name, json.dumps(detection_records(found, val, kind="both")).encode())

    return write


Asked = AskedTraining[DetectionProtocol, DetectionOptions]


def training_of(asked: Asked) -> PreparedTraining[Any]:
    """Return the training of a detector, to look at one of its steps.

    Raises:
        UsageError: as `evaluate_detection`.
    """
    subject, settings = asked.given.load(), asked.given.settings or FeatureSettings()
    return asked.training(detection.prepared_detection, subject, _sets(asked, subject), settings)


def _sets(asked: Asked, subject: Subject) -> DetectionData:
    data, options = asked.given.data, asked.options
    return data if isinstance(data, DetectionData) else _scaled(_read(user_path(data), options), subject, options)


def _read(data: Path, options: DetectionOptions) -> DetectionData:
    if data.is_file():
        raise UsageError(f"--data {data} is one file: name a folder with annotations for training and validation")
    train, val = (
        read_coco(*find_coco(data, split), strict=options.strict, annotations=options.annotations)
        for split in (options.train_split, options.val_split)
    )
    return DetectionData(_first(train, options.train_limit), _first(val, options.val_limit))


def _scaled(sets: DetectionData, subject: Subject, options: DetectionOptions) -> DetectionData:
    scale = subject.scale(MixedImages([sets.train.source, sets.val.source]), options.value_range)
    return DetectionData(sets.train.with_scale(scale), sets.val.with_scale(scale))


def _first(coco: CocoSet, limit: int | None) -> CocoSet:
    return replace(coco, images=coco.images[:limit])
