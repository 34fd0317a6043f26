"""Evaluations on labelled folders: k-NN, linear probe, logistic regression, retrieval."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from mst.evaluate.classification import knn, linear_probe, logistic, retrieval
from mst.evaluate.classification.knn import KnnProtocol
from mst.evaluate.classification.linear_probe import LinearProtocol
from mst.evaluate.classification.logistic import LogisticProtocol
from mst.evaluate.classification.retrieval import RetrievalProtocol
from mst.evaluate.common.features import FeatureSettings
from mst.evaluate.common.image_sets import LabelledSets
from mst.model.backbone import Backbone
from mst.paths import user_path
from mst.runtime.limits import check_numbers
from mst.runtime.storage.results import Result
from mst.workflows.subject import ImageOptions, Subject, load_subject


@dataclass(frozen=True)
class Limits:
    """Parts of a labelled folder, drawn evenly over the sorted list, and what is accepted in it.

    Attributes:
        train_limit: at most this many training images; None = all.
        val_limit: at most this many validation images; None = all.
        strict: refuse what cannot be used in it (dead links, images beside the classes, ...) instead of saying so.
    """

    train_limit: int | None = None
    val_limit: int | None = None
    strict: bool = False

    def __post_init__(self) -> None:
        check_numbers(self, "train_limit", "val_limit", least=1)


def evaluate_knn(
    backbone: str | Path | Backbone,
    data: str | Path | LabelledSets,
    *,
    protocol: KnnProtocol | None = None,
    image: ImageOptions | None = None,
    limits: Limits | None = None,
    settings: FeatureSettings | None = None,
    features: str | Path | None = None,
    out: str | Path | None = None,
    device: str = "auto",
    seed: int = 0,
) -> Result:
    """Classify validation images by their nearest training images.

    Args:
        backbone: a run folder, a backbone file, `random:` before either, or a module in memory.
        data: a folder with `train/<class>/` and `val/<class>/` (or valid, test), or sets in memory.
        protocol: what changes the numbers: k, temperature, how many labels.
        image: size and cropping of the input.
        limits: use only parts of a folder.
        settings: batch size, threads, compute type.
        features: folder that keeps the features for the next of these tasks; None = nowhere.
        out: folder whose `results.jsonl` gets the row; None = the backbone's run folder, if it has one.
        device: auto, cpu, cuda or cuda:N (a module in memory stays where it is).
        seed: of the drawn labels, and of the weights after `random:`.

    Returns:
        `Result` with `top1`, `top5` (k = 20) and `top1_k10`, `top5_k10`, ... in percent.

    Raises:
        UsageError: no such backbone or folder, no classes, validation classes that training lacks, ...
    """
    task = _Task(backbone, data, image, limits, settings, features, out, device, seed)
    return task.run(knn.evaluate_knn, protocol)


def evaluate_linear(
    backbone: str | Path | Backbone,
    data: str | Path | LabelledSets,
    *,
    protocol: LinearProtocol | None = None,
    image: ImageOptions | None = None,
    limits: Limits | None = None,
    settings: FeatureSettings | None = None,
    features: str | Path | None = None,
    out: str | Path | None = None,
    device: str = "auto",
    seed: int = 0,
) -> Result:
    """Train a linear classifier on frozen features and score it on the validation images.

    Args and errors are those of `evaluate_knn`; `protocol` holds learning rates, epochs, batch size, cached or
    augmented features.

    Returns:
        `Result` with `top1`, `top5` (the learning rate chosen on a held-out part of train) and `top1_best_on_val`.
    """
    task = _Task(backbone, data, image, limits, settings, features, out, device, seed)
    return task.run(linear_probe.evaluate_linear, protocol)


def evaluate_logistic(
    backbone: str | Path | Backbone,
    data: str | Path | LabelledSets,
    *,
    protocol: LogisticProtocol | None = None,
    image: ImageOptions | None = None,
    limits: Limits | None = None,
    settings: FeatureSettings | None = None,
    features: str | Path | None = None,
    out: str | Path | None = None,
    device: str = "auto",
    seed: int = 0,
) -> Result:
    """Fit logistic regression to frozen features and score it on the validation images.

    Args and errors are those of `evaluate_knn`; `protocol` holds penalties, steps, how many labels.

    Returns:
        `Result` with `top1`, `top5` (the penalty chosen on a held-out part of train) and `top1_held_out`.
    """
    task = _Task(backbone, data, image, limits, settings, features, out, device, seed)
    return task.run(logistic.evaluate_logistic, protocol)


def evaluate_retrieval(
    backbone: str | Path | Backbone,
    data: str | Path | LabelledSets,
    *,
    protocol: RetrievalProtocol | None = None,
    image: ImageOptions | None = None,
    limits: Limits | None = None,
    settings: FeatureSettings | None = None,
    features: str | Path | None = None,
    out: str | Path | None = None,
    device: str = "auto",
    seed: int = 0,
) -> Result:
    """Look up validation images among the training images, or among each other.

    Args and errors are those of `evaluate_knn`; `protocol` holds the database and the ranks.

    Returns:
        `Result` with `map` and `recall_at_1`, ... in percent.
    """
    task = _Task(backbone, data, image, limits, settings, features, out, device, seed)
    return task.run(retrieval.evaluate_retrieval, protocol)


@dataclass(frozen=True)
class _Task:
    """What every task on a labelled folder is given; the meanings are those of `evaluate_knn`."""

    backbone: str | Path | Backbone
    data: str | Path | LabelledSets
    image: ImageOptions | None
    limits: Limits | None
    settings: FeatureSettings | None
    features: str | Path | None
    out: str | Path | None
    device: str
    seed: int

    def run(self, evaluate: Callable[..., Result], protocol: object) -> Result:
        """Load backbone and images, evaluate, record."""
        subject = load_subject(self.backbone, out=self.out, device=self.device, seed=self.seed)
        image = self.image or ImageOptions()
        sets = _labelled(self.data, subject, self.limits, image)
        identity = sets.fingerprint()
        result = evaluate(
            subject.backbone,
            sets,
            subject.transform(image),
            protocol,
            settings=self.settings,
            features=user_path(self.features) if self.features else None,
            seed=self.seed,
        )
        return subject.record(result, self.out, self.data, identity)


def _labelled(
    data: str | Path | LabelledSets, subject: Subject, limits: Limits | None, image: ImageOptions
) -> LabelledSets:
    if isinstance(data, LabelledSets):
        return data
    parts = limits or Limits()
    return LabelledSets.from_folder(
        data,
        channels=subject.channels,
        ranges=subject.known_ranges(image.value_range),
        train_limit=parts.train_limit,
        val_limit=parts.val_limit,
        strict=parts.strict,
    )
