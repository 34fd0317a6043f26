"""`mst predict TASK`: a trained detector or segmenter on images without labels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from difflib import get_close_matches

from mst.commands.output import emit
from mst.commands.predict_detection import run_detection
from mst.commands.predict_segmentation import run_segmentation
from mst.errors import UsageError

TASKS: dict[str, Callable[[Sequence[str]], int]] = {
    "segmentation": run_segmentation,
    "detection": run_detection,
}
"""Task -> its command."""


def run(argv: Sequence[str]) -> int:
    """Run the command; return the exit status."""
    if not argv or argv[0] in {"-h", "--help"}:
        names = "\n".join(f"  mst predict {name} --help" for name in TASKS)
        emit(f"usage: mst predict {'|'.join(TASKS)} --model DIR --data FOLDER --out DIR\n\n{names}")
        return 0
    if argv[0] not in TASKS:
        close = get_close_matches(argv[0], TASKS, n=1)
        raise UsageError(
            f"unknown prediction {argv[0]}: use {', '.join(TASKS)}{f'; did you mean {close[0]}?' if close else ''}"
        )
    return TASKS[argv[0]](argv[1:])
