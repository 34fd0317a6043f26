"""`mst evaluate TASK`: what each task takes, and the way to it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

from rich.table import Table

from mst.data.labelled import LabelOptions
from mst.engine.schedule import Checkpointing
from mst.evaluate.classification.knn import KnnProtocol
from mst.evaluate.classification.linear_probe import LinearProtocol
from mst.evaluate.classification.logistic import LogisticProtocol
from mst.evaluate.classification.retrieval import RetrievalProtocol
from mst.evaluate.classification.verdict import NAMES
from mst.evaluate.common.features import FeatureSettings
from mst.evaluate.detection.evaluation import DetectionProtocol
from mst.evaluate.objectness.evaluation import ObjectnessProtocol
from mst.evaluate.segmentation.evaluation import SETTINGS, SegmentationProtocol
from mst.paths import PathText, SourceText
from mst.runtime.limits import check_numbers
from mst.terminal.evaluation import Common, run_task
from mst.terminal.output import emit, emit_json
from mst.terminal.parsing import parse_words
from mst.terminal.tasks import Task, run_first_word
from mst.workflows.evaluation.baselines import BaselineResults, evaluate_baselines
from mst.workflows.evaluation.detection import DetectionOptions, evaluate_detection
from mst.workflows.evaluation.labelled import (
    Limits,
    evaluate_knn,
    evaluate_linear,
    evaluate_logistic,
    evaluate_retrieval,
)
from mst.workflows.evaluation.objectness import ObjectOptions, evaluate_objectness
from mst.workflows.evaluation.segmentation import SegmentationOptions, evaluate_segmentation
from mst.workflows.judged import words_for
from mst.workflows.subject import ImageOptions


@dataclass(frozen=True)
class LabelledArguments(Common):
    """What the tasks on labelled images share: train/<class>/ and val/<class>/, <class>/ alone, or a table.

    Attributes:
        features: folder that keeps the features, so that the next of these tasks reads them; they are computed anew,
            and it is said, when weights, images, their size or the precision differ.
        seeds: draws of labels, held-out parts and initial classifiers; their mean is reported, and their spread.
    """

    features: PathText | None = None
    seeds: int = 1
    image: ImageOptions = field(default_factory=ImageOptions)
    limits: Limits = field(default_factory=Limits)
    labels: LabelOptions = field(default_factory=LabelOptions)
    settings: FeatureSettings = field(default_factory=FeatureSettings)


@dataclass(frozen=True)
class ClassifyingArguments(LabelledArguments):
    """What the tasks share that give every image a class.

    Attributes:
        compare: measure untrained weights, colour statistics, pixels and majority class as well, unless rows of them
            lie beside the result, and say whether training helped.
    """

    compare: bool = False


@dataclass(frozen=True)
class KnnArguments(ClassifyingArguments):
    """k-nearest-neighbour classification of labelled images: folders of classes, or a table (--labels)."""

    protocol: KnnProtocol = field(default_factory=KnnProtocol)


@dataclass(frozen=True)
class LinearArguments(ClassifyingArguments):
    """Linear classification of labelled images: folders of classes, or a table (--labels)."""

    protocol: LinearProtocol = field(default_factory=LinearProtocol)


@dataclass(frozen=True)
class LogisticArguments(ClassifyingArguments):
    """Logistic regression (L-BFGS) on the features of labelled images: folders of classes, or a table (--labels)."""

    protocol: LogisticProtocol = field(default_factory=LogisticProtocol)


@dataclass(frozen=True)
class RetrievalArguments(LabelledArguments):
    """Validation images looked up among the training images (or among each other): mAP and recall@k."""

    protocol: RetrievalProtocol = field(default_factory=RetrievalProtocol)


@dataclass(frozen=True)
class DetectionArguments(Common):
    """Mask R-CNN trained on a backbone, on a COCO folder; boxes and masks scored with COCO's metrics."""

    protocol: DetectionProtocol = field(default_factory=DetectionProtocol)
    options: DetectionOptions = field(default_factory=DetectionOptions)
    saving: Checkpointing = field(default_factory=Checkpointing)
    settings: FeatureSettings = field(default_factory=FeatureSettings)


@dataclass(frozen=True)
class ObjectnessArguments(Common):
    """Objects found without training, by attention or between patch tokens (`--method`), on a COCO folder or file,
    `--data scenes:COUNT` or `muted-scenes:COUNT`."""

    protocol: ObjectnessProtocol = field(default_factory=ObjectnessProtocol)
    objects: ObjectOptions = field(default_factory=ObjectOptions)
    settings: FeatureSettings = field(default_factory=FeatureSettings)


@dataclass(frozen=True)
class SegmentationArguments(Common):
    """A segmentation head on a backbone: images/, masks/, train.txt, val.txt, classes.json, or Cityscapes' folder."""

    protocol: SegmentationProtocol = field(default_factory=SegmentationProtocol)
    options: SegmentationOptions = field(default_factory=SegmentationOptions)
    saving: Checkpointing = field(default_factory=Checkpointing)
    settings: FeatureSettings = field(default_factory=lambda: SETTINGS)


@dataclass(frozen=True)
class BaselineArguments:
    """What costs nothing on a labelled folder: majority class, colour statistics, pixels; and whether a backbone is
    better than these and than its untrained weights.

    Attributes:
        data: the labelled folder.
        backbone: as of the other tasks; none = only what needs no network.
        out: folder whose results.jsonl gets the rows; none = the run folder of the backbone, if it has one.
        channels: of the images, where no backbone says it; none = 1 where all that are looked at are grey, else 3.
        device: auto, cpu, cuda or cuda:N.
        seed: of the untrained weights and of the held-out part of the training images.
        json: one JSON object on stdout instead of a table.
    """

    data: SourceText
    backbone: SourceText | None = None
    out: PathText | None = None
    channels: int | None = None
    device: str = "auto"
    seed: int = 0
    json: bool = False
    image: ImageOptions = field(default_factory=ImageOptions)
    limits: Limits = field(default_factory=Limits)
    labels: LabelOptions = field(default_factory=LabelOptions)
    settings: FeatureSettings = field(default_factory=FeatureSettings)

    def __post_init__(self) -> None:
        check_numbers(self, "channels", least=1, most=64)


def run_baselines(argv: Sequence[str]) -> int:
    """Run `mst evaluate baselines`; return the exit status."""
    a = parse_words(BaselineArguments, argv, prog="mst evaluate baselines")
    if a is None:
        return 0
    found = evaluate_baselines(
        a.data,
        a.backbone,
        image=a.image,
        limits=a.limits,
        settings=a.settings,
        labels=a.labels,
        channels=a.channels,
        out=a.out,
        device=a.device,
        seed=a.seed,
    )
    if a.json:
        emit_json(found.to_json())
    else:
        show_baselines(found)
    return 0


def show_baselines(found: BaselineResults) -> None:
    """Print a table and, where there is one, the verdict."""
    rows = {row.protocol.get("which", ""): row for row in found.rows}
    some = found.rows[0]
    table = Table(f"baselines, {some.data}", "top-1 %", "±", box=None, pad_edge=False)
    names = {**NAMES, **words_for(len(some.protocol["transform"]["mean"]))}
    for which in (name for name in names if name in rows):
        metrics = rows[which].metrics
        table.add_row(names[which], f"{metrics['top1']:.1f}", f"{metrics['top1_se']:.1f}")
    emit(table)
    emit(f"{some.extra['train_images']} training and {some.extra['val_images']} validation images")
    if found.verdict is not None:
        emit(found.verdict.sentence)


def run(argv: Sequence[str]) -> int:
    """Run the command; return the exit status."""
    return run_first_word(
        argv, TASKS, prog="mst evaluate", noun="evaluation", options="--backbone RUN|FILE --data PATH [--out DIR]"
    )


TASKS: dict[str, Task] = {
    "knn": partial(run_task, "knn", KnnArguments, evaluate_knn),
    "linear": partial(run_task, "linear", LinearArguments, evaluate_linear),
    "logistic": partial(run_task, "logistic", LogisticArguments, evaluate_logistic),
    "retrieval": partial(run_task, "retrieval", RetrievalArguments, evaluate_retrieval),
    "baselines": run_baselines,
    "segmentation": partial(run_task, "segmentation", SegmentationArguments, evaluate_segmentation),
    "detection": partial(run_task, "detection", DetectionArguments, evaluate_detection),
    "objectness": partial(run_task, "objectness", ObjectnessArguments, evaluate_objectness),
}
"""Word after `mst evaluate` -> what it does."""
