"""`mst evaluate TASK`, and k-NN and linear as functions of the Python API."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import partial
from pathlib import Path

from mst.commands.evaluate_detection import run_detection
from mst.commands.evaluate_objectness import run_objectness
from mst.commands.evaluate_segmentation import run_segmentation
from mst.commands.evaluation import Common, run_task
from mst.commands.output import emit
from mst.commands.subject import ImageOptions, Subject, load_subject
from mst.errors import UsageError
from mst.evaluate import knn, linear_probe
from mst.evaluate.features import FeatureSettings
from mst.evaluate.image_sets import LabelledSets
from mst.evaluate.knn import KnnProtocol
from mst.evaluate.linear_probe import LinearProtocol
from mst.model.backbone import Backbone
from mst.runtime.results import Result


@dataclass(frozen=True)
class Limits:
    """Parts of a labelled folder, drawn evenly over the sorted list.

    Attributes:
        train_limit: at most this many training images; None = all.
        val_limit: at most this many validation images; None = all.
    """

    train_limit: int | None = None
    val_limit: int | None = None

    def __post_init__(self) -> None:
        for name, value in (("--train-limit", self.train_limit), ("--val-limit", self.val_limit)):
            if value is not None and value < 1:
                raise UsageError(f"{name} {value}: must be at least 1")


@dataclass(frozen=True)
class KnnArguments(Common):
    """k-nearest-neighbour classification of train/<class>/ and val/<class>/."""

    protocol: KnnProtocol = field(default_factory=KnnProtocol)
    image: ImageOptions = field(default_factory=ImageOptions)
    limits: Limits = field(default_factory=Limits)
    settings: FeatureSettings = field(default_factory=FeatureSettings)


@dataclass(frozen=True)
class LinearArguments(Common):
    """Linear classification of train/<class>/ and val/<class>/."""

    protocol: LinearProtocol = field(default_factory=LinearProtocol)
    image: ImageOptions = field(default_factory=ImageOptions)
    limits: Limits = field(default_factory=Limits)
    settings: FeatureSettings = field(default_factory=FeatureSettings)


def evaluate_knn(
    backbone: str | Path | Backbone,
    data: str | Path | LabelledSets,
    *,
    protocol: KnnProtocol | None = None,
    image: ImageOptions | None = None,
    limits: Limits | None = None,
    settings: FeatureSettings | None = None,
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
        out: folder whose `results.jsonl` gets the row; None = the backbone's run folder, if it has one.
        device: auto, cpu, cuda or cuda:N (a module in memory stays where it is).
        seed: of the drawn labels, and of the weights after `random:`.

    Returns:
        `Result` with `top1`, `top5` (k = 20) and `top1_k10`, `top5_k10`, ... in percent.

    Raises:
        UsageError: no such backbone or folder, no classes, validation classes that training lacks, ...
    """
    subject = load_subject(backbone, device=device, seed=seed)
    sets, transform = _labelled(data, subject, limits), subject.transform(image or ImageOptions())
    result = knn.evaluate_knn(subject.backbone, sets, transform, protocol, settings=settings, seed=seed)
    return subject.record(result, out, data)


def evaluate_linear(
    backbone: str | Path | Backbone,
    data: str | Path | LabelledSets,
    *,
    protocol: LinearProtocol | None = None,
    image: ImageOptions | None = None,
    limits: Limits | None = None,
    settings: FeatureSettings | None = None,
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
    subject = load_subject(backbone, device=device, seed=seed)
    sets, transform = _labelled(data, subject, limits), subject.transform(image or ImageOptions())
    result = linear_probe.evaluate_linear(subject.backbone, sets, transform, protocol, settings=settings, seed=seed)
    return subject.record(result, out, data)


def _labelled(data: str | Path | LabelledSets, subject: Subject, limits: Limits | None) -> LabelledSets:
    if isinstance(data, LabelledSets):
        return data
    parts = limits or Limits()
    return LabelledSets.from_folder(
        data, channels=subject.channels, train_limit=parts.train_limit, val_limit=parts.val_limit
    )


def run(argv: Sequence[str]) -> int:
    """Run the command; return the exit status."""
    if not argv or argv[0] in {"-h", "--help"}:
        names = "\n".join(f"  mst evaluate {name} --help" for name in TASKS)
        emit(f"usage: mst evaluate {'|'.join(TASKS)} --backbone RUN|FILE --data PATH [--out DIR]\n\n{names}")
        return 0
    if argv[0] not in TASKS:
        close = get_close_matches(argv[0], TASKS, n=1)
        raise UsageError(
            f"unknown evaluation {argv[0]}: use {', '.join(TASKS)}{f'; did you mean {close[0]}?' if close else ''}"
        )
    return TASKS[argv[0]](argv[1:])


TASKS: dict[str, Callable[[Sequence[str]], int]] = {
    "knn": partial(run_task, "knn", KnnArguments, evaluate_knn),
    "linear": partial(run_task, "linear", LinearArguments, evaluate_linear),
    "segmentation": run_segmentation,
    "detection": run_detection,
    "objectness": run_objectness,
}
"""Word after `mst evaluate` -> what it does."""
