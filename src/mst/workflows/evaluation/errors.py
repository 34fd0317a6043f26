"""Where a classifier goes wrong, as files: all predictions, each class's recall, the confusion matrix, worst errors."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional as V

from mst.evaluate.classification.outcome import Outcome
from mst.evaluate.common.image_sets import ImageSet
from mst.evaluate.detection.pictures import png
from mst.runtime.storage.outputs import ANY, Outputs
from mst.runtime.storage.tables import csv_lines

THUMBNAIL = 96
"""Side of a thumbnail in pixels."""


def write_errors(folder: Path, command: str, outcome: Outcome, images: ImageSet) -> None:
    """Write what a classifier answered; nothing but its predictions where it made no error.

    Files: `predictions.csv` (image, class, predicted, probability), `classes.csv`, `confusion.csv` (row = truth),
    `errors.json` and `errors.png` (thumbnails of the worst errors from left to right).

    Args:
        folder: only for these files; made if it is not there.
        command: that writes them.
        outcome: the answers.
        images: the set that `outcome.positions` counts in.

    Raises:
        RunFailure: the disk refused.
    """
    outputs, classes = Outputs(folder, command, "--out", earlier=ANY), outcome.classes
    sure = outcome.probabilities.max(1).values.tolist()
    answers = zip(outcome.names, outcome.labels.tolist(), outcome.predictions.tolist(), sure, strict=True)
    predictions = [(name, classes[true], classes[guess], f"{share:.4f}") for name, true, guess, share in answers]
    by_class = outcome.by_class()
    strip = _strip([images.read(outcome.positions[place]) for place in outcome.wrong()])
    files: list[tuple[str | Path, bytes]] = [
        ("predictions.csv", table(("image", "class", "predicted", "probability"), predictions)),
        ("classes.csv", table(tuple(by_class[0]), ([_cell(value) for value in row.values()] for row in by_class))),
        (
            "confusion.csv",
            table(
                ("class", *classes),
                ((name, *row) for name, row in zip(classes, outcome.confusion.tolist(), strict=True)),
            ),
        ),
        ("errors.png", png(strip)),
        ("errors.json", (json.dumps({"side": THUMBNAIL, "errors": outcome.worst()}, indent=2) + "\n").encode()),
    ]
    outputs.write_together(files)


def table(head: Sequence[object], rows: Iterable[Sequence[object]]) -> bytes:
    """Return a CSV file; an empty cell for None, bytes of names that are no UTF-8 as they are."""
    return csv_lines([head, *rows]).encode("utf-8", "surrogateescape")


def _cell(value: object) -> object:
    """Return a percentage with two digits, anything else as it is."""
    return f"{value:.2f}" if isinstance(value, float) else value


def _strip(pictures: Sequence[Tensor]) -> Image.Image:
    """Return thumbnails of uint8 images [C, H, W] side by side, each whole, on grey; one grey one if there are none."""
    strip = torch.full((3, THUMBNAIL, THUMBNAIL * max(1, len(pictures))), 128, dtype=torch.uint8)
    for number, picture in enumerate(pictures):
        rgb = picture if picture.shape[0] == 3 else picture.float().mean(0, keepdim=True).byte().expand(3, -1, -1)
        scale = THUMBNAIL / max(rgb.shape[1:])
        height, width = (max(1, round(side * scale)) for side in rgb.shape[1:])
        small = V.resize(rgb, [height, width], antialias=True)
        top, left = (THUMBNAIL - height) // 2, number * THUMBNAIL + (THUMBNAIL - width) // 2
        strip[:, top : top + height, left : left + width] = small
    return Image.fromarray(strip.permute(1, 2, 0).contiguous().numpy())


def write_if_telling(folder: Path, command: str, outcome: Outcome, images: ImageSet) -> None:
    """Write the errors where there are few or unbalanced classes.

    Raises:
        RunFailure: the disk refused.
    """
    if outcome.detailed:
        write_errors(folder, command, outcome, images)
