"""Evaluations on labelled folders: k-NN, linear probe, logistic regression, retrieval."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Generic, TypeVar

from mst.data.labelled import LabelOptions
from mst.errors import MstError, UsageError
from mst.evaluate.classification import knn, linear_probe, logistic, retrieval
from mst.evaluate.classification.draws import repeated
from mst.evaluate.classification.knn import KnnProtocol
from mst.evaluate.classification.linear_probe import LinearProtocol
from mst.evaluate.classification.logistic import LogisticProtocol
from mst.evaluate.classification.outcome import Outcome
from mst.evaluate.classification.retrieval import RetrievalProtocol
from mst.evaluate.classification.verdict import SIMPLE
from mst.evaluate.common.feature_store import FeatureMemory
from mst.evaluate.common.features import FeatureSettings
from mst.evaluate.common.image_sets import LabelledSets
from mst.evaluate.common.protocol import LowShot
from mst.model.backbone import Backbone
from mst.paths import user_path, user_place
from mst.runtime.limits import check_numbers
from mst.runtime.logging import warn
from mst.runtime.names import shown
from mst.runtime.storage.results import Result
from mst.runtime.storage.rundir import RunDir
from mst.workflows.evaluation.compared import Missing, judged, simple_beside, untrained
from mst.workflows.evaluation.errors import write_if_telling
from mst.workflows.evaluation.inputs import EvaluationInput
from mst.workflows.subject import RANDOM, ImageOptions, Subject

Numbers = TypeVar("Numbers")
"""The protocol of a task: the settings that change its numbers."""


@dataclass(frozen=True)
class Limits:
    """How many images of a labelled folder are used, evenly over the sorted list, and what it may hold.

    Attributes:
        train_limit: at most this many training images; None = all.
        val_limit: at most this many validation images; None = all.
        strict: refuse a folder that holds things that cannot be used (dead links, images beside the classes, ...); else
            they are counted in a remark.
    """

    train_limit: int | None = None
    val_limit: int | None = None
    strict: bool = False

    def __post_init__(self) -> None:
        check_numbers(self, "train_limit", "val_limit", least=1)


@dataclass(frozen=True)
class _Asked(Generic[Numbers]):
    """What a task was asked for, with everything that was left away."""

    given: EvaluationInput[LabelledSets]
    protocol: Numbers | None
    image: ImageOptions
    limits: Limits
    labels: LabelOptions
    features: str | Path | None
    seeds: int
    compare: bool


class LabelledEvaluation(Generic[Numbers]):
    """A task on a labelled folder, called with a backbone and the folder."""

    def __init__(self, evaluate: Callable[..., Result], task: str, *, classifies: bool = True) -> None:
        """Make a task of the Python API from a function that takes a loaded backbone and loaded sets.

        Args:
            evaluate: does the work.
            task: the word after `mst evaluate`.
            classifies: whether every image gets a class, so that errors can be listed.
        """
        self._evaluate, self._task, self._classifies = evaluate, task, classifies
        self.__name__, self.__doc__ = evaluate.__name__, evaluate.__doc__

    def __call__(
        self,
        backbone: str | Path | Backbone,
        data: str | Path | LabelledSets,
        *,
        protocol: Numbers | None = None,
        image: ImageOptions | None = None,
        limits: Limits | None = None,
        labels: LabelOptions | str | Path | None = None,
        settings: FeatureSettings | None = None,
        features: str | Path | None = None,
        out: str | Path | None = None,
        device: str = "auto",
        seed: int = 0,
        seeds: int = 1,
        compare: bool = False,
    ) -> Result:
        """Evaluate a backbone on labelled images.

        Args:
            backbone: a run folder, a backbone file, `timm:NAME`, `NAME=FILE` (a timm name and a file of weights),
                `random:` before any of them, or a module in memory.
            data: a folder with `train/<class>/` and `val/<class>/` (or valid, test), or with `<class>/` alone, the
                folder of the images of a table, a table (.csv, .tsv), or sets in memory.
            protocol: what changes the numbers: how many neighbours, learning rates, how many labels, ...
            image: size and cropping of the input.
            limits: use only parts of a folder.
            labels: a table of paths and labels, or all options of labels: the part to score, the split.
            settings: batch size, threads, compute type.
            features: folder that keeps the features for the next of these tasks; None = nowhere.
            out: folder whose `results.jsonl` gets the row; None = the backbone's run folder, if it has one.
            device: auto, cpu, cuda or cuda:N (a module in memory stays where it is).
            seed: of every draw, and of the weights after `random:`.
            seeds: draws of labels, held-out parts and initial classifiers; the mean is returned, with `X_spread`.
            compare: measure untrained weights, colour statistics, pixels and majority class as well, where there are no
                rows of them beside the result; with any of them `extra["verdict"]` says whether training helped.

        Returns:
            `Result` with metrics in percent; each `X` has its standard error as `X_se`. For few or unbalanced classes
            the folder of the results gets `errors/TASK` as well, see `mst.workflows.evaluation.errors`.

        Raises:
            UsageError: no such backbone or folder, no classes, validation classes that training lacks, ...
        """
        self._check_draws(protocol, seeds)
        if compare and not self._classifies:
            raise UsageError(f"--compare: {self._task} has no verdict: compare with --backbone {RANDOM}RUN")
        given = EvaluationInput[LabelledSets](backbone, data, settings, out, device, seed)
        options = image or ImageOptions(), limits or Limits(), label_options(labels)
        return self._evaluated(_Asked(given, protocol, *options, features, seeds, compare))

    def _evaluated(self, asked: _Asked[Numbers]) -> Result:
        """Evaluate, record and list errors."""
        given, seeds, subject = asked.given, asked.seeds, asked.given.load()
        sets, transform = _labelled(asked, subject), subject.transform(asked.image)
        _check_apart(asked, subject, sets)
        identity = sets.fingerprint()
        place = user_path(asked.features) if asked.features else FeatureMemory() if seeds > 1 else None
        answers: list[Outcome] = []
        watch = {"watch": answers.append} if self._classifies else {}
        once = partial(self._evaluate, subject.backbone, sets, transform, asked.protocol, **watch)
        once = partial(once, settings=given.settings, features=place)
        result = once(seed=given.seed) if seeds == 1 else repeated(lambda own: once(seed=own), given.seed, seeds)
        if sets.split is not None:
            result = replace(result, extra={**result.extra, "split": sets.split.row()})
            subject.keep_split(sets.split)
        result = subject.named(result, given.data, identity, sets.train.scale)
        if self._classifies:
            more = Missing(
                lambda: self._evaluated(replace(asked, given=untrained(given, subject), features=None, compare=False)),
                partial(simple_beside, given, subject, sets, transform),
                frozenset(SIMPLE),
            )
            result = judged(result, subject, more if asked.compare else None)
        subject.keep(result)
        self._write_errors(subject, answers, sets)
        return result

    def _write_errors(self, subject: Subject, answers: Sequence[Outcome], sets: LabelledSets) -> None:
        """Write what the first draw got wrong beside the row, if that goes anywhere; warn where it cannot be."""
        if subject.folder is None or not answers:
            return
        folder = RunDir(subject.folder).errors_of(self._task, untrained=subject.fresh)
        try:
            write_if_telling(folder, f"evaluate {self._task}", answers[0], sets.val)
        except MstError as error:
            warn(f"{error}; what is wrong is not listed")

    def _check_draws(self, protocol: Numbers | None, seeds: int) -> None:
        """Refuse draws of nothing.

        Raises:
            UsageError: fewer than one draw, or all of them would be the same.
        """
        if seeds < 1:
            raise UsageError(f"--seeds {seeds}: must be at least 1")
        labels = getattr(protocol, "labels", None) or LowShot()
        looked_up = self._task in {"knn", "retrieval"}
        if seeds > 1 and looked_up and (labels == LowShot() or getattr(protocol, "database", "train") == "val"):
            raise UsageError(
                f"--seeds {seeds}: {self._task} draws nothing here, so all results would be the same: give "
                "--train-per-class or --train-share, or leave --seeds away"
            )


evaluate_knn = LabelledEvaluation[KnnProtocol](knn.evaluate_knn, "knn")
"""`top1` (k = 20) and `top1_k10`, ... of the nearest training images; `top5` as well for more than ten classes."""
evaluate_linear = LabelledEvaluation[LinearProtocol](linear_probe.evaluate_linear, "linear")
"""`top1` of a linear classifier (learning rate chosen on a held-out part of train), and `top1_best_on_val`."""
evaluate_logistic = LabelledEvaluation[LogisticProtocol](logistic.evaluate_logistic, "logistic")
"""`top1` of logistic regression (penalty chosen on a held-out part of train), and `top1_held_out`."""
evaluate_retrieval = LabelledEvaluation[RetrievalProtocol](retrieval.evaluate_retrieval, "retrieval", classifies=False)
"""`map` and `recall_at_1`, ... of validation images looked up among the training images, or among each other."""


def _check_apart(asked: _Asked[Any], subject: Subject, sets: LabelledSets) -> None:
    """Refuse results in a folder whose folders are classes: they, or the run that they go to, would be one.

    Raises:
        UsageError: they would.
    """
    data = asked.given.data
    if not isinstance(data, str | Path) or subject.folder is None or sets.split is None or not sets.split.automatic:
        return
    root, folder = user_path(data).resolve(), subject.folder.resolve()
    if asked.labels.labels is not None or not root.is_dir() or not folder.is_relative_to(root):
        return
    places = [root, *(entry for entry in root.iterdir() if entry.is_dir())]
    holds = next((place for place in places if all((place / name).is_dir() for name in sets.classes)), None)
    if holds is not None and folder != holds and folder.is_relative_to(holds):
        raise UsageError(
            f"results would go to {shown(folder)} in --data {shown(data)}, whose folders are classes: name a folder "
            "apart with --out, or move the run"
        )


def _labelled(asked: _Asked[Any], subject: Subject) -> LabelledSets:
    data, parts = asked.given.data, asked.limits
    if isinstance(data, LabelledSets):
        if asked.labels != LabelOptions():
            raise UsageError("labels= goes with a path as data: sets in memory have their labels and their split")
        return data
    return LabelledSets.from_folder(
        data,
        channels=subject.channels,
        ranges=subject.known_ranges(asked.image.value_range),
        train_limit=parts.train_limit,
        val_limit=parts.val_limit,
        strict=parts.strict,
        labels=asked.labels,
    )


def label_options(labels: LabelOptions | str | Path | None) -> LabelOptions:
    """Return options of labels: as they are, or those of a table alone."""
    if labels is None or isinstance(labels, LabelOptions):
        return labels or LabelOptions()
    return LabelOptions(labels=user_place(labels))
