"""`mst predict TASK`: a trained detector or segmenter on images without labels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rich.table import Table

from mst.data.value_range import check_range
from mst.paths import PathText
from mst.runtime.limits import check_numbers
from mst.terminal.output import emit, emit_json
from mst.terminal.parsing import parse_words
from mst.terminal.tasks import Task, run_first_word
from mst.workflows.prediction.detection import FILE, Precision, predict_detection
from mst.workflows.prediction.segmentation import MASKS, predict_segmentation


@dataclass(frozen=True)
class PredictDetectionArguments:
    """Find objects in images without annotations: COCO JSON and pictures.

    Attributes:
        model: the folder of a trained detector: --out or --save-model of `mst evaluate detection`.
        data: a folder (searched at any depth), an image, or a text file of paths.
        out: folder for predictions.json and pictures/.
        min_score: what scores less is left out of predictions.json; what scores below 0.05 is in any case.
        picture_score: what scores less is not drawn.
        picture_limit: at most this many pictures; 0 = none, None = one of each image.
        limit: only this many images, drawn evenly from the sorted list.
        value_range: black and white among values that are not stored in 8 bits; None = as in training.
        device: auto, cpu, cuda or cuda:N.
        precision: compute type of backbone and pyramid.
        progress: show a bar.
        json: one JSON object on stdout.
    """

    model: PathText
    data: PathText
    out: PathText
    min_score: float = 0.05
    picture_score: float = 0.5
    picture_limit: int | None = None
    limit: int | None = None
    value_range: tuple[float, float] | None = None
    device: str = "auto"
    precision: Precision = "auto"
    progress: bool = True
    json: bool = False

    def __post_init__(self) -> None:
        check_numbers(self, "min_score", "picture_score", least=0, most=1)
        check_numbers(self, "picture_limit", least=0)
        check_numbers(self, "limit", least=1)
        check_range(self.value_range)


def run_detection(argv: Sequence[str]) -> int:
    """Run the command; return the exit status."""
    a = parse_words(PredictDetectionArguments, argv, prog="mst predict detection")
    if a is None:
        return 0
    found, description = predict_detection(
        a.model,
        a.data,
        out=a.out,
        min_score=a.min_score,
        picture_score=a.picture_score,
        picture_limit=a.picture_limit,
        limit=a.limit,
        value_range=a.value_range,
        device=a.device,
        precision=a.precision,
        progress=a.progress,
    )
    drawn = Counter(item.label for item in found.detections if item.score >= a.picture_score)
    counts = {description.classes[label]: drawn[label] for label in sorted(drawn)}
    file = str(Path(a.out) / FILE)
    if a.json:
        emit_json({"out": file, "images": len(found.images), "objects": counts, "unreadable": list(found.unreadable)})
        return 0
    table = Table("class", f"objects above {a.picture_score:g}", box=None, pad_edge=False)
    for name, number in counts.items():
        table.add_row(name, str(number))
    emit(table, f"{len(found.images)} images, {len(found.detections)} objects above {a.min_score:g} in {file}")
    return 0


@dataclass(frozen=True)
class PredictSegmentationArguments:
    """Segment images without masks: a file of class numbers and an overlay for each.

    Attributes:
        model: the folder of a trained segmenter: --save-model or --out of `mst evaluate segmentation`.
        data: a folder (searched at any depth), an image, or a text file of paths.
        out: folder for masks/ (PNG of class numbers, with a palette) and pictures/ (image and overlay).
        picture_limit: at most this many pictures; 0 = none, None = one of each image.
        limit: only this many images, drawn evenly from the sorted list.
        value_range: black and white among values that are not stored in 8 bits; None = as in training.
        device: auto, cpu, cuda or cuda:N.
        precision: compute type of the network.
        progress: show a bar.
        json: one JSON object on stdout.
    """

    model: PathText
    data: PathText
    out: PathText
    picture_limit: int | None = None
    limit: int | None = None
    value_range: tuple[float, float] | None = None
    device: str = "auto"
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    progress: bool = True
    json: bool = False

    def __post_init__(self) -> None:
        check_numbers(self, "picture_limit", least=0)
        check_numbers(self, "limit", least=1)
        check_range(self.value_range)


def run_segmentation(argv: Sequence[str]) -> int:
    """Run the command; return the exit status."""
    a = parse_words(PredictSegmentationArguments, argv, prog="mst predict segmentation")
    if a is None:
        return 0
    found = predict_segmentation(
        a.model,
        a.data,
        out=a.out,
        picture_limit=a.picture_limit,
        limit=a.limit,
        value_range=a.value_range,
        device=a.device,
        precision=a.precision,
        progress=a.progress,
    )
    if a.json:
        emit_json(
            {
                "out": a.out,
                "images": len(found.masks),
                "pixel_percent": found.shares,
                "unreadable": list(found.unreadable),
            }
        )
        return 0
    table = Table("class", "pixels %", box=None, pad_edge=False)
    for name, share in found.shares.items():
        table.add_row(name, f"{share:.2f}")
    emit(table, f"{len(found.masks)} masks in {Path(a.out) / MASKS}, {len(found.unreadable)} images unreadable")
    return 0


TASKS: dict[str, Task] = {
    "segmentation": run_segmentation,
    "detection": run_detection,
}
"""Word after `mst predict` -> what it does."""


def run(argv: Sequence[str]) -> int:
    """Run the command; return the exit status."""
    return run_first_word(
        argv, TASKS, prog="mst predict", noun="prediction", options="--model DIR --data FOLDER --out DIR"
    )
