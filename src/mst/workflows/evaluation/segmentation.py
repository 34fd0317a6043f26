"""Segmentation by a head on a backbone, from a folder of pairs to a row of results."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from mst.data.sources.mixed import MixedImages
from mst.data.value_range import Scale, check_range
from mst.engine.schedule import Checkpointing
from mst.engine.supervised import PreparedTraining
from mst.evaluate.classification.verdict import COLOUR, Measured
from mst.evaluate.common.features import FeatureSettings
from mst.evaluate.common.orientation import Frame
from mst.evaluate.segmentation import evaluation as segmentation
from mst.evaluate.segmentation.cityscapes import cityscapes_folder, is_cityscapes
from mst.evaluate.segmentation.data import SegmentationData
from mst.evaluate.segmentation.evaluation import SegmentationProtocol
from mst.evaluate.segmentation.file import save_segmenter
from mst.evaluate.segmentation.folder import segmentation_folder
from mst.evaluate.segmentation.inference import View
from mst.evaluate.segmentation.model import Segmenter
from mst.evaluate.segmentation.patches import PatchColours
from mst.evaluate.segmentation.pictures import sheet_writer
from mst.model.backbone import Backbone
from mst.paths import PathText, user_path
from mst.runtime.limits import check_numbers
from mst.runtime.storage.files import check_folder
from mst.runtime.storage.results import Result
from mst.runtime.storage.rundir import RunDir
from mst.workflows.evaluation.asked import AskedTraining
from mst.workflows.evaluation.compared import Missing, judged, measured, record_beside, untrained
from mst.workflows.evaluation.inputs import EvaluationInput
from mst.workflows.judged import BASELINE
from mst.workflows.subject import Subject


@dataclass(frozen=True)
class SegmentationOptions:
    """Parts of the data, and what is written beside the row.

    Attributes:
        train_limit: at most this many training images, at even distances; None = all.
        val_limit: at most this many validation images, at even distances; None = all.
        value_range: black and white among values that are not stored in 8 bits; None = as the backbone was trained.
        strict: refuse pairs that are missing or cannot be used; else they are left out.
        annotations: whether masks of images with an EXIF orientation belong to the image as it is displayed or as it is
            stored; None = as their sizes tell.
        save_model: folder for the trained head and backbone, for `mst predict segmentation`, and for the rows of its
            training (metrics.jsonl; not in a run folder); None = --out, if it is given.
        pictures: folder for a picture of each validation image: image, truth, prediction; None = pictures/segmentation
            (or pictures/patch_segmentation) of --out or the run folder, where `mst report` looks for them.
        picture_limit: at most this many pictures; 0 = none.
        compare: score untrained weights as well, and for the linear layer on patches colour statistics of each patch,
            where there are no rows of them beside the result; the result then says whether training helped.
    """

    train_limit: int | None = None
    val_limit: int | None = None
    value_range: tuple[float, float] | None = None
    strict: bool = False
    annotations: Frame | None = None
    save_model: PathText | None = None
    pictures: PathText | None = None
    picture_limit: int = 24
    compare: bool = False

    def __post_init__(self) -> None:
        check_numbers(self, "train_limit", "val_limit", least=1)
        check_range(self.value_range)
        check_numbers(self, "picture_limit", least=0)
        if self.save_model:
            check_folder(user_path(self.save_model), "--save-model")

    def applied(self, settings: FeatureSettings | None) -> FeatureSettings:
        """Return the settings that an evaluation takes: with `strict` nothing may be left out."""
        settings = settings or segmentation.SETTINGS
        return replace(settings, max_unreadable_share=0.0) if self.strict else settings


Asked = AskedTraining[SegmentationProtocol, SegmentationOptions]


def evaluate_segmentation(
    backbone: str | Path | Backbone,
    data: str | Path | SegmentationData,
    *,
    protocol: SegmentationProtocol | None = None,
    options: SegmentationOptions | None = None,
    saving: Checkpointing | None = None,
    settings: FeatureSettings | None = None,
    out: str | Path | None = None,
    device: str = "auto",
    seed: int = 0,
) -> Result:
    """Train a segmentation head, by default one linear layer on frozen patch tokens, and score it per pixel.

    Args:
        backbone: as for `evaluate_knn`.
        data: a folder with `images/`, `masks/`, `train.txt`, `val.txt` and `classes.json`, Cityscapes' own folder
            (`leftImg8bit/`, `gtFine/`), or pairs in memory.
        protocol: head, size, windows, steps, batch size, learning rate, augmentation.
        options: parts of the data, the trained model, pictures.
        saving: checkpoints of the training; the linear layer on cached tokens has none.
        settings: batch size, threads, compute type.
        out: as for `evaluate_knn`.
        device: as for `evaluate_knn`.
        seed: of the head's weights, the order of the images, the augmentation, and the weights after `random:`.

    Returns:
        `Result` with `miou`, `macc`, `aacc` in percent and a row per class in `extra["per_class"]`.

    Raises:
        UsageError: a part of the folder is missing, a mask does not fit its image or has an unknown value, ...
    """
    given = EvaluationInput[SegmentationData](backbone, data, settings, out, device, seed)
    protocol, options = protocol or SegmentationProtocol(), options or SegmentationOptions()
    subject, asked = given.load(), AskedTraining(given, protocol, options, saving or Checkpointing())
    pairs = _pairs(asked, subject)
    identity = pairs.fingerprint()
    mean, std = subject.mean_std
    model = given.model_folder(options.save_model)
    pictures = subject.pictures("patch_segmentation" if protocol.cached else "segmentation", options.pictures)
    run = RunDir(model) if model is not None and not RunDir(model).exists() else None
    result = segmentation.evaluate_segmentation(
        subject.backbone,
        pairs,
        protocol,
        mean=mean,
        std=std,
        settings=options.applied(settings),
        saving=saving,
        seed=seed,
        run=run,
        begun=None if protocol.cached else asked.note("segmentation", run),
        trained=_saved_in(model, pairs.train.scale),
        watch=sheet_writer(pictures, options.picture_limit, pairs.classes) if pictures is not None else None,
    )
    result = subject.named(result, data, identity)
    return subject.keep(judged(result, subject, _missing(asked, subject, pairs) if options.compare else None))


def _missing(asked: Asked, subject: Subject, pairs: SegmentationData) -> Missing:
    """Return how to measure what a trained backbone is compared with; colours only for the layer on patches."""
    names = frozenset({COLOUR} if asked.protocol.cached else ())
    return Missing(partial(_untrained, asked, subject), partial(_colours, asked, subject, pairs), names)


def _untrained(asked: Asked, subject: Subject) -> Result:
    """Evaluate the same network with fresh weights."""
    given = untrained(asked.given, subject)
    return evaluate_segmentation(
        given.backbone,
        given.data,
        protocol=asked.protocol,
        options=replace(asked.options, compare=False, save_model=None, pictures=None, picture_limit=0),
        settings=given.settings,
        out=given.out,
        device=given.device,
        seed=given.seed,
    )


def _colours(asked: Asked, subject: Subject, pairs: SegmentationData) -> dict[str, Measured]:
    """Score the linear layer on colour statistics of the patches; the row goes beside those of the backbone."""
    patches: Any = PatchColours(subject.channels, subject.backbone.patch_size)
    mean, std = subject.mean_std
    settings = asked.options.applied(asked.given.settings)
    result = segmentation.evaluate_segmentation(
        patches, pairs, asked.protocol, mean=mean, std=std, settings=settings, seed=asked.given.seed
    )
    row = replace(result, task=BASELINE, protocol={**result.protocol, "which": COLOUR, "task": result.task})
    record_beside(row, subject, asked.given.data, pairs.fingerprint())
    number = measured(result.task, result.metrics, result.extra)
    return {} if number is None else {COLOUR: number}


def _saved_in(folder: Path | None, scale: Scale) -> Callable[[Segmenter, View], None] | None:
    """Return the function that writes the trained segmenter into a folder; None if there is no folder."""
    return None if folder is None else lambda segmenter, view: save_segmenter(folder, segmenter, view, scale)


def training_of(asked: Asked) -> PreparedTraining[Any]:
    """Return the training of a segmentation, to look at one of its steps.

    Raises:
        UsageError: as `evaluate_segmentation`.
    """
    subject = asked.given.load()
    settings = asked.options.applied(asked.given.settings)
    return asked.training(segmentation.prepared_segmentation, subject, _pairs(asked, subject), settings)


def _pairs(asked: Asked, subject: Subject) -> SegmentationData:
    """Return the pairs that are learnt from and scored."""
    data, options = asked.given.data, asked.options
    sets = data if isinstance(data, SegmentationData) else _read(user_path(data), subject, options)
    return sets.evenly(options.train_limit, options.val_limit)


def _read(folder: Path, subject: Subject, options: SegmentationOptions) -> SegmentationData:
    """Return the sets of a folder in either layout, with how their values become 8 bits."""
    read = cityscapes_folder if is_cityscapes(folder) else segmentation_folder
    data = read(
        folder,
        channels=subject.channels,
        annotations=options.annotations,
        limits=(options.train_limit, options.val_limit),
    )
    return data.with_scale(subject.scale(MixedImages([data.train.images, data.val.images]), options.value_range))
