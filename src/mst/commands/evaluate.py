"""`mst evaluate TASK`: what each task takes, and the way to it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

from mst.data.labelled import LabelOptions
from mst.engine.schedule import Checkpointing
from mst.evaluate.classification.knn import KnnProtocol
from mst.evaluate.classification.linear_probe import LinearProtocol
from mst.evaluate.classification.logistic import LogisticProtocol
from mst.evaluate.classification.retrieval import RetrievalProtocol
from mst.evaluate.common.features import FeatureSettings
from mst.evaluate.detection.evaluation import DetectionProtocol
from mst.evaluate.objectness.evaluation import ObjectnessProtocol
from mst.evaluate.segmentation.evaluation import SETTINGS, SegmentationProtocol
from mst.paths import PathText
from mst.terminal.evaluation import Common, run_task
from mst.terminal.tasks import Task, run_first_word
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
from mst.workflows.subject import ImageOptions


@dataclass(frozen=True)
class LabelledArguments(Common):
    """What the tasks on labelled images share: train/<class>/ and val/<class>/, <class>/ alone, or a table.

    Attributes:
        features: folder that keeps the features, so that the next of these tasks reads them; they are computed anew,
            and it is said, when weights, images, their size or the precision differ.
    """

    features: PathText | None = None
    image: ImageOptions = field(default_factory=ImageOptions)
    limits: Limits = field(default_factory=Limits)
    labels: LabelOptions = field(default_factory=LabelOptions)
    settings: FeatureSettings = field(default_factory=FeatureSettings)


@dataclass(frozen=True)
class KnnArguments(LabelledArguments):
    """k-nearest-neighbour classification of labelled images: folders of classes, or a table (--labels)."""

    protocol: KnnProtocol = field(default_factory=KnnProtocol)


@dataclass(frozen=True)
class LinearArguments(LabelledArguments):
    """Linear classification of labelled images: folders of classes, or a table (--labels)."""

    protocol: LinearProtocol = field(default_factory=LinearProtocol)


@dataclass(frozen=True)
class LogisticArguments(LabelledArguments):
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
    """Objects found by importance alone, on a COCO folder, a COCO file, or `--data scenes:COUNT`."""

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
    "segmentation": partial(run_task, "segmentation", SegmentationArguments, evaluate_segmentation),
    "detection": partial(run_task, "detection", DetectionArguments, evaluate_detection),
    "objectness": partial(run_task, "objectness", ObjectnessArguments, evaluate_objectness),
}
"""Word after `mst evaluate` -> what it does."""
