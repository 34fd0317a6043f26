"""`mst evaluate baselines`: what classifiers reach on labelled images without a trained network, and a verdict."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from mst.data.labelled import LabelOptions
from mst.errors import UsageError
from mst.evaluate.classification.baselines import knn_answers, simple_baselines
from mst.evaluate.classification.verdict import UNTRAINED, Verdict, judge
from mst.evaluate.common.features import FeatureSettings, used_precision
from mst.evaluate.common.image_sets import LabelledSets
from mst.evaluate.common.protocol import ImageTransform
from mst.model.backbone import Backbone
from mst.model.build import build_backbone
from mst.paths import user_path
from mst.runtime.answers import Answers
from mst.runtime.identity import DataIdentity
from mst.runtime.seeding import check_seed
from mst.runtime.storage.files import check_folder
from mst.runtime.storage.results import Result, append_jsonl
from mst.runtime.storage.rundir import RunDir
from mst.workflows.evaluation.labelled import Limits, label_options
from mst.workflows.judged import (
    BASELINE,
    NEIGHBORS,
    VERDICT,
    counted,
    described,
    verdict_extra,
    verdict_metrics,
    words_for,
)
from mst.workflows.subject import RANDOM, ImageOptions, Subject, described_data, load_subject

USUAL_SIZE = (64, 64)
"""Size of the images where no backbone says one."""
TRAIN_LIMIT, VAL_LIMIT = 20_000, 10_000
"""Images that are used unless other limits are asked for: enough for half a percent, minutes on one core."""


@dataclass(frozen=True)
class BaselineResults:
    """What was measured.

    Attributes:
        rows: of task `baseline`, `protocol["which"]` being `untrained`, `majority`, `colour` or `pixels`; with a
            backbone also one of task `verdict`.
        verdict: whether the backbone is better than these; None without a backbone.
    """

    rows: tuple[Result, ...]
    verdict: Verdict | None

    def to_json(self) -> dict[str, Any]:
        """Return the record as JSON types."""
        return {
            "rows": [row.row() for row in self.rows],
            "verdict": None if self.verdict is None else self.verdict.to_json(),
        }


def evaluate_baselines(
    data: str | Path | LabelledSets,
    backbone: str | Path | Backbone | None = None,
    *,
    image: ImageOptions | None = None,
    limits: Limits | None = None,
    settings: FeatureSettings | None = None,
    labels: LabelOptions | str | Path | None = None,
    channels: int = 3,
    out: str | Path | None = None,
    device: str = "auto",
    seed: int = 0,
) -> BaselineResults:
    """Measure majority class, colour statistics and pixels, and with a backbone its k-NN, untrained and as it is.

    Args:
        data: a folder with `train/<class>/` and `val/<class>/` (or valid, test), or sets in memory.
        backbone: as of `mst.evaluate_knn`; None = measure what needs no network.
        image: size and cut of the images; without a backbone 64 x 64 unless a size is given.
        limits: use only parts of a folder; up to 20,000 and 10,000 images unless it says more.
        settings: batch size, threads, compute type.
        labels: a table of paths and labels, or all options of labels: the part to score, the split.
        channels: of the images, where no backbone says it.
        out: folder whose `results.jsonl` gets the rows; None = the backbone's run folder, if it has one.
        device: auto, cpu, cuda or cuda:N.
        seed: of the untrained weights and of the held-out part of the training images.

    Raises:
        UsageError: no such backbone or folder, no classes, or a backbone that is untrained itself.
    """
    check_seed(seed)
    image, settings, parts = image or ImageOptions(), settings or FeatureSettings(), limits or Limits()
    subject = _subject(backbone, out, device, seed)
    sets = _sets(data, subject, parts, image, channels=channels, labels=label_options(labels))
    transform = _transform(subject, image, sets.train.channels)
    simple = simple_baselines(sets, transform, settings=settings, seed=seed)
    found = {each.which: (each.answers, described(each)) for each in simple}
    trained, k = None, min(NEIGHBORS, len(sets.train))
    if subject is not None:
        trained, untrained = (
            knn_answers(each, sets, transform, neighbors=k, settings=settings)
            for each in (subject.backbone, _untrained(subject.backbone, seed))
        )
        found[UNTRAINED] = untrained, {"k": k, "precision": used_precision(settings, subject.backbone)}
    identity = sets.fingerprint()
    common: dict[str, Any] = {"transform": transform, "seed": seed}
    rows = [
        _row(BASELINE, {"which": which, **how}, {"top1": own.percent, "top1_se": own.se}, own, sets, **common)
        for which, (own, how) in found.items()
    ]
    verdict = None
    if trained is not None:
        others = {which: answers for which, (answers, _) in found.items()}
        verdict = judge(trained, others, names=words_for(sets.train.channels))
        numbers = verdict_metrics(verdict)
        rows.append(_row(VERDICT, {"k": k}, numbers, trained, sets, **common, **verdict_extra(verdict)))
    if sets.split is not None and subject is not None:
        subject.keep_split(sets.split)
    recorded = tuple(_recorded(row, subject, data, identity, out) for row in rows)
    return BaselineResults(recorded, verdict)


def _untrained(backbone: Backbone, seed: int) -> Backbone:
    """Return the same network with fresh weights, on the same device."""
    fresh = build_backbone(backbone.spec, seed=seed, init=backbone.metadata.get("init", "trunc_normal"))
    return fresh.to(next(backbone.parameters()).device)


def _subject(backbone: str | Path | Backbone | None, out: str | Path | None, device: str, seed: int) -> Subject | None:
    if backbone is None:
        if out:
            check_folder(user_path(out), "--out")
        return None
    if str(backbone).startswith(RANDOM):
        raise UsageError(f"--backbone {backbone}: untrained weights are compared with already: name the trained ones")
    return load_subject(backbone, out=out, device=device, seed=seed)


def _sets(
    data: str | Path | LabelledSets,
    subject: Subject | None,
    parts: Limits,
    image: ImageOptions,
    *,
    channels: int,
    labels: LabelOptions,
) -> LabelledSets:
    if isinstance(data, LabelledSets):
        if labels != LabelOptions():
            raise UsageError("labels= goes with a path as data: sets in memory have their labels and their split")
        return data
    return LabelledSets.from_folder(
        data,
        channels=channels if subject is None else subject.channels,
        ranges=None if subject is None else subject.known_ranges(image.value_range),
        train_limit=parts.train_limit or TRAIN_LIMIT,
        val_limit=parts.val_limit or VAL_LIMIT,
        strict=parts.strict,
        labels=labels,
    )


def _transform(subject: Subject | None, image: ImageOptions, channels: int) -> ImageTransform:
    if subject is not None:
        return subject.transform(image)
    mean, std, size = (0.5,) * channels, (0.5,) * channels, image.size or USUAL_SIZE
    return ImageTransform(size, mean, std, image.resize_ratio, image.whole_if_exact)


def _row(
    task: str,
    protocol: Mapping[str, Any],
    metrics: Mapping[str, float],
    answers: Answers,
    sets: LabelledSets,
    *,
    transform: ImageTransform,
    seed: int,
    **extra: Any,
) -> Result:
    used = {**protocol, "transform": asdict(transform)}
    split = {} if sets.split is None else {"split": sets.split.row()}
    return Result(task, dict(metrics), used, seed=seed, extra=counted(sets, answers) | split | extra)


def _recorded(
    row: Result, subject: Subject | None, data: object, identity: DataIdentity, out: str | Path | None
) -> Result:
    """Return a row with the names of backbone and data, appended where results go."""
    name = "" if subject is None else subject.name
    own = row.task == VERDICT
    named = replace(
        row,
        backbone=name if own else f"{RANDOM}{name}" if name else "",
        backbone_sha256=subject.sha256 if own and subject is not None else "",
        **described_data(data, identity),
    )
    folder = user_path(out) if out else None if subject is None else subject.folder
    if folder is not None:
        append_jsonl(RunDir(folder).results, named.row())
    return named
