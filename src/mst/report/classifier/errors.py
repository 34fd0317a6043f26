"""Where a classifier goes wrong, for the page: confusion matrix, recall of each class, the worst errors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mst.report.pictures import data_uri
from mst.report.reading import Row, is_number, parse_json, read_bytes
from mst.report.results import TASKS, is_untrained

MOST_SHOWN = 20
"""Classes of a confusion matrix that a page can show."""
THUMBNAIL = (16, 512)
"""Sides of a thumbnail, in pixels, that are believed."""


@dataclass(frozen=True)
class ConfusionCell:
    """Images of a class that got one answer: how many, and their share of the class."""

    count: int
    share: float


@dataclass(frozen=True)
class TaskErrors:
    """One evaluation.

    Attributes:
        title: of the task.
        classes: a row for each: name, images, recall, recall_se, precision.
        matrix: name of each class with its cells; empty for too many classes.
        worst: image, class, predicted, probability of the surest errors.
        strip: data URI of their thumbnails from left to right; "" = none.
        side: of a thumbnail in pixels.
    """

    title: str
    classes: Sequence[Row]
    matrix: Sequence[tuple[str, Sequence[ConfusionCell]]]
    worst: Sequence[Row]
    strip: str = ""
    side: int = 0


def task_errors(results: Sequence[Row], folders: Mapping[str, Path]) -> list[TaskErrors]:
    """Return the errors of the last row of each task with trained weights, in the order of the tasks.

    Args:
        results: rows of results.jsonl.
        folders: `errors/TASK` by task, where there is one.
    """
    last: dict[str, Row] = {}
    for row in results:
        extra = row.get("extra")
        if isinstance(extra, Mapping) and isinstance(extra.get("recalls"), list) and not is_untrained(row):
            last[str(row.get("task", ""))] = row
    ordered = [task for task in TASKS if task in last]
    return [_errors(task, last[task]["extra"], folders.get(task)) for task in ordered]


def _errors(task: str, extra: Mapping[str, Any], folder: Path | None) -> TaskErrors:
    classes = [
        {
            "name": str(row.get("name")),
            "images": int(row["images"]),
            **{key: _number(row.get(key)) for key in ("recall", "recall_se", "precision")},
        }
        for row in extra["recalls"]
        if isinstance(row, Mapping) and is_number(row.get("images"))
    ]
    matrix = _matrix(extra.get("confusion"), [str(row["name"]) for row in classes])
    if folder is not None:
        found = parse_json(read_bytes(folder / "errors.json"))
        side = found.get("side") if isinstance(found, Mapping) else None
        if is_number(side) and THUMBNAIL[0] <= side <= THUMBNAIL[1] and isinstance(found.get("errors"), list):
            with suppress(OSError, ValueError, SyntaxError):  # no picture
                strip = data_uri(folder / "errors.png", small=False)
                return TaskErrors(TASKS[task], classes, matrix, _worst(found["errors"]), strip, int(side))
    return TaskErrors(TASKS[task], classes, matrix, _worst(extra.get("errors")))


def _worst(rows: object) -> list[Row]:
    """Return the rows that are errors."""
    return [row for row in rows if _is_error(row)] if isinstance(rows, list) else []


def _is_error(row: object) -> bool:
    return (
        isinstance(row, Mapping)
        and all(isinstance(row.get(key), str) for key in ("image", "class", "predicted"))
        and is_number(row.get("probability"))
    )


def _number(value: object) -> float | None:
    return float(value) if is_number(value) else None


def _matrix(counts: object, names: Sequence[str]) -> list[tuple[str, list[ConfusionCell]]]:
    """Return the rows of a confusion matrix; none where it is damaged, or of too many classes."""
    size = len(names)
    if not isinstance(counts, list) or not 0 < len(counts) == size <= MOST_SHOWN:
        return []
    if not all(isinstance(row, list) and len(row) == size and all(map(is_number, row)) for row in counts):
        return []
    return [
        (name, [ConfusionCell(int(count), count / max(1, sum(row))) for count in row])
        for name, row in zip(names, counts, strict=True)
    ]
