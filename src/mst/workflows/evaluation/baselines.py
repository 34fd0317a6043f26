"""`mst evaluate baselines`: what classifiers reach on labelled images without a trained network, and a verdict."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mst.data.labelled import LabelledFolder, LabelOptions
from mst.data.look import look_at
from mst.errors import DataError, UsageError
from mst.evaluate.classification.baselines import knn_answers, simple_baselines
from mst.evaluate.classification.verdict import UNTRAINED, Verdict, judge
from mst.evaluate.common.features import FeatureSettings, used_precision
from mst.evaluate.common.image_sets import LabelledSets
from mst.evaluate.common.protocol import ImageTransform
from mst.model.backbone import Backbone
from mst.paths import user_path
from mst.runtime import logging
from mst.runtime.identity import DataIdentity
from mst.runtime.seeding import check_seed
from mst.runtime.storage.files import check_folder
from mst.runtime.storage.results import Result, append_jsonl
from mst.runtime.storage.rundir import RunDir
from mst.workflows.evaluation.compared import baseline_rows, fresh_weights, labelled_row
from mst.workflows.evaluation.labelled import Limits, label_options
from mst.workflows.judged import BASELINE, NEIGHBORS, VERDICT, verdict_extra, verdict_metrics, words_for
from mst.workflows.subject import RANDOM, ImageOptions, Subject, described_data, keep_split, load_subject

USUAL_SIZE = (64, 64)
"""Size of the images where no backbone says one."""
RGB = 3
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
    channels: int | None = None,
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
        channels: of the images, where no backbone says it; None = 1 where all that are looked at are grey, else 3.
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
    common: dict[str, Any] = {"transform": transform, "seed": seed}
    rows = baseline_rows(simple, sets, **common)
    verdict = None
    if subject is not None:
        k = min(NEIGHBORS, len(sets.train))
        trained, fresh = (
            knn_answers(each, sets, transform, neighbors=k, settings=settings)
            for each in (subject.backbone, fresh_weights(subject.backbone, seed))
        )
        how = {"which": UNTRAINED, "k": k, "precision": used_precision(settings, subject.backbone)}
        numbers = {"top1": fresh.percent, "top1_se": fresh.se}
        rows.append(labelled_row(BASELINE, how, numbers, fresh, sets, **common))
        others = {each.which: each.answers for each in simple} | {UNTRAINED: fresh}
        verdict = judge(trained, others, names=words_for(sets.train.channels))
        numbers, told = verdict_metrics(verdict), verdict_extra(verdict)
        rows.append(labelled_row(VERDICT, {"k": k}, numbers, trained, sets, **common, **told))
    identity = sets.fingerprint()
    if sets.split is not None:
        keep_split(sets.split, _folder(subject, out))
    recorded = tuple(_recorded(row, subject, data, identity, out) for row in rows)
    return BaselineResults(recorded, verdict)


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
    channels: int | None,
    labels: LabelOptions,
) -> LabelledSets:
    if isinstance(data, LabelledSets):
        if labels != LabelOptions():
            raise UsageError("labels= goes with a path as data: sets in memory have their labels and their split")
        return data
    known = channels if subject is None else subject.channels
    folder = LabelledFolder(data, channels=known or RGB, strict=parts.strict, labels=labels)
    return LabelledSets.of(
        folder,
        channels=known or _channels(folder),
        ranges=None if subject is None else subject.known_ranges(image.value_range),
        train_limit=parts.train_limit or TRAIN_LIMIT,
        val_limit=parts.val_limit or VAL_LIMIT,
    )


def _channels(folder: LabelledFolder) -> int:
    """Return 1 for images that are grey, also where they are stored as RGB, and 3 for others."""
    try:
        if not look_at(folder.train.paths, channels=RGB).grey:
            return RGB
    except DataError:  # reading them says what is wrong
        return RGB
    logging.info("all images looked at are grey: read as one channel (--channels 3 reads them as RGB)")
    return 1


def _transform(subject: Subject | None, image: ImageOptions, channels: int) -> ImageTransform:
    if subject is not None:
        return subject.transform(image)
    mean, std, size = (0.5,) * channels, (0.5,) * channels, image.size or USUAL_SIZE
    return ImageTransform(size, mean, std, image.resize_ratio, image.whole_if_exact)


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
    folder = _folder(subject, out)
    if folder is not None:
        append_jsonl(RunDir(folder).results, named.row())
    return named


def _folder(subject: Subject | None, out: str | Path | None) -> Path | None:
    """Return where results go; None = nowhere."""
    return user_path(out) if out else None if subject is None else subject.folder
