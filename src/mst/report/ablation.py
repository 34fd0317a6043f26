"""The table and the plot of an ablation: for each variant, mean and spread over seeds of its runs' metrics."""

from __future__ import annotations

import io
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from mst.report.reading import is_number, parse_json, read_bytes
from mst.runtime.storage.results import read_jsonl
from mst.runtime.storage.rundir import RunDir

COLUMNS = {
    "knn_top1": "k-NN top-1, %",
    "psnr_masked": "PSNR of hidden pixels, dB",
    "psnr_visible": "PSNR of visible pixels, dB",
    "rankme": "RankMe",
}
"""Metric -> its title; a metric that no run has is left out."""
ROW_HEIGHT, PANEL_WIDTH = 0.34, 3.2  # inches


@dataclass(frozen=True)
class AblationRow:
    """One variant.

    Attributes:
        name: of the variant.
        values: metric -> one value per run that has it, in the order of the seeds.
    """

    name: str
    values: Mapping[str, tuple[float, ...]]

    def mean(self, metric: str) -> float | None:
        """Return the mean over the runs; None where none has the metric."""
        found = self.values.get(metric, ())
        return statistics.fmean(found) if found else None

    def spread(self, metric: str) -> float | None:
        """Return the sample standard deviation over the runs; None for fewer than two."""
        found = self.values.get(metric, ())
        return statistics.stdev(found) if len(found) > 1 else None


def read_ablation(runs: Mapping[str, Sequence[Path]]) -> list[AblationRow]:
    """Return a row per variant from its run folders: last values of metrics.jsonl, accuracy of the ablation's k-NN."""
    rows = []
    for name, folders in runs.items():
        found = [_last_values(RunDir(folder)) for folder in folders]
        rows.append(AblationRow(name, {key: tuple(run[key] for run in found if key in run) for key in COLUMNS}))
    return rows


def own_result(run: RunDir) -> Mapping[str, Any] | None:
    """Return the k-NN row that the ablation wrote for a run; None if there is no complete one.

    Rows of results.jsonl do not count: any evaluation, with other weights, images or settings, may have added them.
    """
    row = parse_json(read_bytes(run.ablation))
    metrics = row.get("metrics") if isinstance(row, dict) else None
    return row if isinstance(metrics, dict) and is_number(metrics.get("top1")) else None


def markdown(rows: Sequence[AblationRow], *, each: bool = False) -> str:
    """Return the rows as a Markdown table.

    Args:
        rows: one per variant.
        each: write every run's value instead of mean ± sample standard deviation (number of runs).
    """
    columns = [key for key in COLUMNS if any(row.values.get(key) for row in rows)]
    head = "| variant | " + " | ".join(COLUMNS[key] for key in columns) + " |"
    lines = [head, "|---" * (len(columns) + 1) + "|"]
    lines += ["| " + " | ".join([row.name, *(cell(row, key, each=each) for key in columns)]) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def cell(row: AblationRow, metric: str, *, each: bool) -> str:
    """Write one cell; a dash where nothing was measured."""
    mean, spread = row.mean(metric), row.spread(metric)
    if mean is None:
        return "-"
    if each:
        return ", ".join(f"{value:.2f}" for value in row.values[metric])
    return f"{mean:.2f}" + (f" ± {spread:.2f} ({len(row.values[metric])})" if spread is not None else "")


def plot_ablation(rows: Sequence[AblationRow]) -> bytes:
    """Draw one panel per metric, a dot per run, the mean and its spread, as the content of a PNG file."""
    columns = [key for key in COLUMNS if any(row.values.get(key) for row in rows)]
    size = (PANEL_WIDTH * max(len(columns), 1) + 1, ROW_HEIGHT * len(rows) + 1.1)
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(1, max(len(columns), 1), sharey=True, squeeze=False)[0]
    for panel, key in zip(panels, columns, strict=False):
        for place, row in enumerate(rows):
            values = row.values[key]
            panel.plot(values, [place] * len(values), "o", color="#2a6f97", alpha=0.6, markersize=5)
            mean = row.mean(key)
            if mean is not None:
                panel.errorbar(
                    [mean], [place], xerr=row.spread(key) or 0, fmt="|", color="#012a4a", markersize=16, elinewidth=1
                )
        panel.set_title(COLUMNS[key], fontsize=9)
        panel.locator_params(axis="x", nbins=5)
        panel.set_yticks(range(len(rows)), [row.name for row in rows])
        panel.grid(axis="x", alpha=0.3)
        for side in ("top", "right", "left"):
            panel.spines[side].set_visible(False)
        panel.tick_params(length=0, labelsize=8)
    panels[0].invert_yaxis()
    content = io.BytesIO()
    figure.savefig(content, dpi=150, format="png")
    return content.getvalue()


def _last_values(run: RunDir) -> dict[str, float]:
    """Return the last value of each column's metric."""
    values: dict[str, float] = {}
    for row in read_jsonl(run.metrics):
        values |= {key: row[key] for key in COLUMNS if is_number(row.get(key))}
    values.pop("knn_top1", None)  # while training it is measured on parts of the images only
    result = own_result(run)
    return values if result is None else {**values, "knn_top1": result["metrics"]["top1"]}
