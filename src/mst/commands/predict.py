"""`mst predict TASK`: a trained detector or segmenter on images without labels."""

from __future__ import annotations

from collections.abc import Sequence

from mst.commands.predict_detection import run_detection
from mst.commands.predict_segmentation import run_segmentation
from mst.commands.tasks import Task, run_first_word

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
