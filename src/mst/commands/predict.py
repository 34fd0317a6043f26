"""`mst predict TASK`: a trained classifier, detector or segmenter on images without labels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.table import Table

from mst.evaluate.detection.pictures import DRAWN_SCORE
from mst.evaluate.detection.prediction import MIN_SCORE
from mst.runtime.limits import check_numbers
from mst.terminal.output import emit, emit_json
from mst.terminal.parsing import parse_words
from mst.terminal.tasks import Task, run_first_word
from mst.workflows.prediction.classification import ClassificationInput, classify
from mst.workflows.prediction.detection import FILE, detect
from mst.workflows.prediction.inputs import PredictionInput
from mst.workflows.prediction.segmentation import MASKS, segment


@dataclass(frozen=True)
class DetectionArguments(PredictionInput):
    """Find objects in images without annotations: predictions.json (COCO) and pictures/ in --out.

    Attributes:
        min_score: what scores less is left out of predictions.json; what scores below 0.05 is in any case.
        picture_score: what scores less is not drawn.
        json: one JSON object on stdout.
    """

    min_score: float = MIN_SCORE
    picture_score: float = DRAWN_SCORE
    json: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_numbers(self, "min_score", "picture_score", least=0, most=1)


def run_detection(argv: Sequence[str]) -> int:
    """Run the command; return the exit status."""
    a = parse_words(DetectionArguments, argv, prog="mst predict detection")
    if a is None:
        return 0
    found, description = detect(a, min_score=a.min_score, picture_score=a.picture_score)
    drawn = Counter(item.label for item in found.detections if item.score >= a.picture_score)
    counts = {description.classes[label]: drawn[label] for label in sorted(drawn)}
    file = str(Path(a.out) / FILE)
    row = {"out": file, "images": len(found.images), "objects": counts, "unreadable": list(found.unreadable)}
    line = f"{len(found.images)} images, {len(found.detections)} objects above {a.min_score:g} in {file}"
    return _show(row if a.json else None, f"objects above {a.picture_score:g}", counts, line)


@dataclass(frozen=True)
class SegmentationArguments(PredictionInput):
    """Segment images without masks: masks/ (PNG of class numbers, with a palette) and pictures/ (overlays) in --out.

    Attributes:
        json: one JSON object on stdout.
    """

    json: bool = False


def run_segmentation(argv: Sequence[str]) -> int:
    """Run the command; return the exit status."""
    a = parse_words(SegmentationArguments, argv, prog="mst predict segmentation")
    if a is None:
        return 0
    found = segment(a)
    counts = {"images": len(found.masks), "pixel_percent": found.shares, "unreadable": list(found.unreadable)}
    line = f"{len(found.masks)} masks in {Path(a.out) / MASKS}, {len(found.unreadable)} images unreadable"
    return _show({"out": a.out, **counts} if a.json else None, "pixels %", found.shares, line)


@dataclass(frozen=True)
class ClassificationArguments(ClassificationInput):
    """Classify images without labels: a line with path, class and probability of each in --out.

    Attributes:
        json: one JSON object on stdout.
    """

    json: bool = False


def run_classification(argv: Sequence[str]) -> int:
    """Run the command; return the exit status."""
    a = parse_words(ClassificationArguments, argv, prog="mst predict classification")
    if a is None:
        return 0
    found = classify(a)
    counts = {"images": len(found.names), "classes": found.counts, "unreadable": list(found.unreadable)}
    left_out = f", {len(found.unreadable)} unreadable: {found.file}.unreadable.txt" if found.unreadable else ""
    line = f"{len(found.names)} images in {found.file}{left_out}"
    return _show({"out": str(found.file), **counts} if a.json else None, "images", found.counts, line)


def _show(row: Mapping[str, object] | None, title: str, by_class: Mapping[str, float], line: str) -> int:
    """Print a row as JSON; without one a table of a number for each class, and a line; return the exit status."""
    if row is not None:
        emit_json(row)
        return 0
    table = Table("class", title, box=None, pad_edge=False)
    for name, number in by_class.items():
        table.add_row(name, f"{number:.2f}" if isinstance(number, float) else str(number))
    emit(table, line)
    return 0


TASKS: dict[str, Task] = {
    "classification": run_classification,
    "segmentation": run_segmentation,
    "detection": run_detection,
}
"""Word after `mst predict` -> what it does."""


def run(argv: Sequence[str]) -> int:
    """Run the command; return the exit status."""
    return run_first_word(
        argv, TASKS, prog="mst predict", noun="prediction", options="--model DIR --data FOLDER --out DIR|FILE"
    )
