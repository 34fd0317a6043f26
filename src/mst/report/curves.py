"""Which curves a report shows, and how to read each: from the rows of metrics.jsonl."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from mst.report.health import found_in
from mst.report.plots import Chart, Series
from mst.report.reading import RunRecords, points_of
from mst.runtime.dynamics.records import Finding


@dataclass(frozen=True)
class Group:
    """Charts under one heading."""

    title: str
    charts: Sequence[Chart]
    small: bool = False


def chart_groups(records: RunRecords) -> list[Group]:
    """Return the groups of charts for which there are numbers."""
    groups = [
        Group(
            "Learning",
            [each(records) for each in (_knn, _validation, _losses, _found_again, _restoration, _psnr, _gain)],
        ),
        Group("Health", [_entropy(records), _rank(records), _spread(records), _gradient(records)]),
        Group("Schedules", _schedules(records), small=True),
        Group("Throughput", [_speed(records), _waiting(records), _memory(records)]),
    ]
    found = found_in(records)
    kept = [
        replace(group, charts=[_marked(records, chart, found) for chart in group.charts if chart.series])
        for group in groups
    ]
    return [group for group in kept if group.charts]


SHOWS = {
    "Loss": ("self_distillation",),
    "Entropy of the teacher": ("teacher_entropy", "marginal_entropy"),
    "Spread of the features": ("feature_std",),
    "RankMe": ("rankme",),
    "Restoration quality": ("psnr_masked", "masked_share"),
    "k-NN accuracy while training": ("knn_top1",),
}
"""The columns that a chart shows, of those that findings name."""


def _marked(records: RunRecords, chart: Chart, found: Sequence[Finding]) -> Chart:
    """Return a chart with what went wrong in it, and with the rows that a repair left."""
    keys = SHOWS.get(chart.title, ())
    last = max((row["step"] for row in records.metrics), default=0)
    mine = [finding for finding in found if finding.key in keys]
    marks = [(finding.began, last if finding.ended is None else finding.ended) for finding in mine]
    left = [
        Series(f"abandoned, repair {number}", points, faint=True)
        for number, rows in enumerate(records.abandoned, start=1)
        if keys and len(points := points_of(rows, keys[0])) > 1
    ]
    first = min(mine, key=lambda finding: finding.began, default=None)
    note = chart.note
    if first is not None:
        note += f" Marked: from step {first.began} on something is wrong ({first.text})."
    return replace(chart, series=[*chart.series, *left], marks=marks, note=note)


def _series(records: RunRecords, names: dict[str, str], unit: str = "") -> list[Series]:
    """Return a curve for each key that has at least two points."""
    columns = {name: records.column(key) for key, name in names.items()}
    return [Series(name, points, unit) for name, points in columns.items() if len(points) > 1]


def _knn(records: RunRecords) -> Chart:
    column = records.column("knn_top1")
    reference = ("untrained", column[0][1]) if column and column[0][0] == 0 else None
    return Chart(
        "k-NN accuracy while training",
        "Share of validation images whose nearest training images have their class, in percent. "
        "Labels are used to measure, never to learn.",
        _series(records, {"knn_top1": "top-1"}, " %"),
        reference,
    )


def _found_again(records: RunRecords) -> Chart:
    images = records.last("retrieval_images")
    return Chart(
        "Augmented crops found again",
        "Share of crops whose nearest other crop is of the same image, among images that were not learned from. "
        "No labels are needed.",
        _series(records, {"retrieval_top1": "retrieval"}, " %"),
        ("chance", 100 / images) if images else None,
    )


def _gain(records: RunRecords) -> Chart:
    return Chart(
        "Restoration against one colour",
        "PSNR of hidden patches less that of the mean colour of the others, on images that were not learned from. "
        "0 is no better than one colour.",
        _series(records, {"restore_gain": "gain"}, " dB"),
    )


def _validation(records: RunRecords) -> Chart:
    return Chart(
        "Accuracy",
        "Share of images whose class has the highest score, in percent, without augmentation. Where training images "
        "rise and validation images do not, they are learnt by heart.",
        _series(records, {"val_top1": "validation", "train_top1": "training images", "val_top5": "top-5"}, " %"),
    )


def _losses(records: RunRecords) -> Chart:
    """Total and self-distillation; one curve where they are the same."""
    total, own = records.column("loss"), records.column("self_distillation")
    if not own:
        note = "Cross-entropy with the labels. The trained one is of augmented images with softened labels."
        names = {"val_loss": "validation", "train_loss": "training images as they are", "loss": "as trained"}
        return Chart("Loss", note, _series(records, names))
    names = {"loss": "total", "self_distillation": "self-distillation"}
    if total == own:
        names = {"loss": "self-distillation"}
    return Chart(
        "Loss",
        "Cross-entropy between teacher and student, and the total with restoration. It may rise early on, "
        "while the teacher becomes more certain.",
        _series(records, names),
    )


def _restoration(records: RunRecords) -> Chart:
    return Chart(
        "Restoration loss",
        "Mean absolute difference between the restored and the given view, in normalised pixels.",
        _series(records, {"restoration": "L1"}) if records.setting("objective", "restoration_weight", 1) else [],
    )


def _psnr(records: RunRecords) -> Chart:
    return Chart(
        "Restoration quality",
        "PSNR in decibels, hidden and visible patches apart: hidden ones must be inferred from the others; "
        "the mean colour of the visible ones is what knows least of them.",
        _series(records, {"psnr_masked": "hidden", "psnr_visible": "visible", "psnr_fill": "mean colour"}, " dB"),
    )


def _entropy(records: RunRecords) -> Chart:
    limit = records.last("max_entropy")
    return Chart(
        "Entropy of the teacher",
        "Single outputs should be certain (low), their mean over images diverse (high). Both at ln K, "
        "or both the same, is collapse.",
        _series(records, {"teacher_entropy": "one image", "marginal_entropy": "mean of images"}),
        None if limit is None else ("ln K", limit),
    )


def _rank(records: RunRecords) -> Chart:
    return Chart(
        "RankMe",
        "Effective number of dimensions that the features use. It may fall at first; a late fall is a warning, "
        "1 is collapse.",
        _series(records, {"rankme": "RankMe"}),
    )


def _spread(records: RunRecords) -> Chart:
    return Chart(
        "Spread of the features",
        "Standard deviation of unit-length features, times √D: 1 is spread evenly, 0 is collapse.",
        _series(records, {"feature_std": "deviation"}),
    )


def _gradient(records: RunRecords) -> Chart:
    return Chart("Gradient norm", "Over all parameters, before clipping.", _series(records, {"grad_norm": "norm"}))


def _schedules(records: RunRecords) -> list[Chart]:
    names = {
        "lr": ("Learning rate", "Linear warm-up, then cosine."),
        "teacher_momentum": ("Teacher momentum", "Share of the teacher that each step keeps."),
        "teacher_temp": ("Teacher temperature", "Lower is sharper."),
        "weight_decay": ("Weight decay", "Cosine."),
    }
    return [Chart(title, note, _series(records, {key: title.lower()})) for key, (title, note) in names.items()]


def _speed(records: RunRecords) -> Chart:
    note = "Training images, all their crops included."
    return Chart("Images per second", note, _series(records, {"images_per_second": "images/s"}))


def _waiting(records: RunRecords) -> Chart:
    return Chart(
        "Waiting for data",
        "Share of the time in which the networks had no batch: above a few percent, add workers.",
        _series(records, {"data_wait": "waiting"}),
        percent=True,
    )


def _memory(records: RunRecords) -> Chart:
    note = "What the process holds of the computer's memory, in GB: level once the first steps are over."
    return Chart("Memory", note, _series(records, {"memory_gb": "GB"}))
