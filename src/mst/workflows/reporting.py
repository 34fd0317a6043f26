"""Comparison and report of runs, for users of the Python API: `mst compare` and `mst report` as records."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mst.paths import user_path
from mst.report.compare import ComparisonTable, compare_results
from mst.report.page import write_report as write_page
from mst.runtime.storage.rundir import open_run_dir


@dataclass(frozen=True)
class Report:
    """What was written about a run.

    Attributes:
        page: the self-contained HTML page.
        model_card: the card in Markdown.
    """

    page: Path
    model_card: Path


def compare(runs: Sequence[str | Path], *, every_metric: bool = False) -> ComparisonTable:
    """Return the results of several runs in one table, with differences to the first.

    Args:
        runs: run folders, or results.jsonl files.
        every_metric: all metrics instead of each task's main ones.

    Raises:
        UsageError: a run is not there or has no results, or the same one is named twice.
    """
    return compare_results([user_path(run) for run in runs], every_metric=every_metric)


def write_report(run: str | Path) -> Report:
    """Write report.html and model_card.md into a run folder, from the files that lie in it.

    Raises:
        UsageError: there is no run.
    """
    page = write_page(open_run_dir(user_path(run)))
    return Report(page, page.parent / "model_card.md")
