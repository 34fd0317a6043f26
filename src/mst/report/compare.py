"""Results of several runs side by side; each line is one task on one data set under one protocol."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from mst.errors import UsageError
from mst.paths import like_named
from mst.report.datasets import data_key, data_names, drawn_labels
from mst.report.reading import FINETUNE, Row, clean, is_number, visible
from mst.report.results import HEADLINES, JUDGING, TASKS, is_untrained, metric_title
from mst.report.rows.uncertainty import SE, error_of, error_of_difference
from mst.report.rows.variants import flat, in_words
from mst.runtime.logging import warn
from mst.runtime.names import shown
from mst.runtime.noise import is_clear
from mst.runtime.storage.current import of_these_weights
from mst.runtime.storage.outputs import Outputs
from mst.runtime.storage.results import read_jsonl
from mst.runtime.storage.rundir import RunDir

COUNTS = ("train_images", "val_images", "classes")
"""Numbers in a result's extra that describe its data: rows that differ in one are different measurements."""
FOLLOWS_FROM_START = ("layer_decay", "recipe")
"""Settings of a fine-tuning that differ between trained and fresh weights by default."""
PLOTS = (".png", ".svg", ".pdf")


@dataclass(frozen=True)
class Line:
    """One metric of one task under one protocol.

    Attributes:
        task: knn, linear, ...
        metric: top1, ...
        settings: the data set, and the settings in which this protocol differs from the task's other ones.
        values: one per column; None = not measured.
        errors: the standard error of each value; None = unknown.
        difference_errors: the standard error of each difference to the first column.
    """

    task: str
    metric: str
    settings: dict[str, Any]
    values: tuple[float | None, ...]
    errors: tuple[float | None, ...] = ()
    difference_errors: tuple[float | None, ...] = ()

    @property
    def title(self) -> str:
        """Task, metric and settings as words."""
        settings = ", ".join(f"{name} {in_words(value)}" for name, value in self.settings.items())
        return f"{TASKS.get(self.task, self.task)}, {metric_title(self.metric)}{f' ({settings})' if settings else ''}"

    @property
    def differences(self) -> tuple[float | None, ...]:
        """Each value less the first column's."""
        first = self.values[0]
        return tuple(None if value is None or first is None else value - first for value in self.values)

    @property
    def within_noise(self) -> tuple[bool | None, ...]:
        """Whether each difference may be chance (at most two of its standard errors); None = unknown, or no other."""
        return tuple(
            None if not place or change is None or se is None else not is_clear(change, se)
            for place, (change, se) in enumerate(zip(self.differences, self.difference_errors, strict=True))
        )


@dataclass(frozen=True)
class ComparisonTable:
    """All lines; the columns are the runs, and their untrained networks if these were measured."""

    columns: tuple[str, ...]
    lines: tuple[Line, ...]

    def to_json(self) -> dict[str, Any]:
        """Return the table as JSON types; differences are to the first column."""
        lines = [
            {
                "task": line.task,
                "metric": line.metric,
                "settings": line.settings,
                "values": list(line.values),
                "standard_errors": list(line.errors),
                "differences": list(line.differences),
                "difference_errors": list(line.difference_errors),
                "within_noise": list(line.within_noise),
            }
            for line in self.lines
        ]
        return {"columns": list(self.columns), "lines": lines}


def compare_results(runs: Sequence[Path], *, every_metric: bool = False) -> ComparisonTable:
    """Return the last result of every task and protocol of each run.

    Args:
        runs: run folders, or results.jsonl files.
        every_metric: all metrics instead of each task's main ones.

    Raises:
        UsageError: a run is not there or has no results, or the same one is named twice.
    """
    columns: dict[str, list[Row]] = {}
    for name, path in zip(_names(runs), runs, strict=True):
        rows = _rows(path)
        for title, untrained in ((f"{name} (untrained)", True), (name, False)):
            chosen = [row for row in rows if is_untrained(row) is untrained]
            if chosen:
                columns[title] = chosen
    names = data_names(row for rows in columns.values() for row in rows)
    groups: dict[tuple[str, str], dict[str, Row]] = {}
    for column, rows in columns.items():
        for row in rows:
            groups.setdefault((str(row.get("task", "")), json.dumps(conditions(row), sort_keys=True)), {})[column] = row
    lines = [
        _named(line, names)
        for (task, _), rows in groups.items()
        for line in _lines(task, rows, groups, list(columns), every_metric)
    ]
    return ComparisonTable(tuple(columns), tuple(sorted(lines, key=lambda line: _order(line.task))))


def _named(line: Line, names: Mapping[str, str]) -> Line:
    """Return a line with the name of its data that tells them from the other data."""
    key = line.settings.get("data")
    return line if key is None else replace(line, settings={**line.settings, "data": names[key]})


def _order(task: str) -> int:
    return list(TASKS).index(task) if task in TASKS else len(TASKS)


def _names(runs: Sequence[Path]) -> list[str]:
    """Return a short name for each run: its folder's, or the whole path where two are alike."""
    folders = [path.parent if path.is_file() else path for path in runs]
    if len({folder.resolve() for folder in folders}) < len(folders):
        raise UsageError("the same run is named twice: name different runs")
    short = [folder.resolve().name for folder in folders]
    names = [name if short.count(name) == 1 else str(folder) for name, folder in zip(short, folders, strict=True)]
    return list(map(visible, names))


def _rows(path: Path) -> list[Row]:
    file = path if path.is_file() else path / "results.jsonl"
    if not path.exists():
        raise UsageError(f"{path} does not exist{like_named(path)}: name run folders or results.jsonl files")
    try:
        read = [row for row in read_jsonl(file) if isinstance(row, dict) and row.get("task") not in JUDGING]
        rows: list[Row] = [clean(row) for row in read if isinstance(row.get("metrics"), dict)]
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{file} cannot be read as results ({error})") from error
    rows, outdated = of_these_weights(rows, RunDir(file.parent), but=FINETUNE)
    if outdated:
        rows_said = "1 row" if outdated == 1 else f"{outdated} rows"
        warn(f"{shown(file)}: left out {rows_said}, of other weights than the run has now")
    if not rows:
        raise UsageError(f"{file} holds no results{' of its weights' * bool(outdated)}: run mst evaluate on it first")
    return rows


def conditions(row: Row) -> dict[str, Any]:
    """Return the data's key and size, the seed of drawn labels and the protocol, flat: `a.b` for nested settings."""
    extra = row.get("extra")
    counts = {key: extra[key] for key in COUNTS if key in extra} if isinstance(extra, Mapping) else {}
    key, protocol = data_key(row), _protocol(row)
    if row.get("task") == FINETUNE:  # they follow from where the weights come from, which is what is compared
        protocol = {name: value for name, value in protocol.items() if name not in FOLLOWS_FROM_START}
    return {**({"data": key} if key else {}), **protocol, **counts, **drawn_labels(row)}


def _protocol(row: Row) -> dict[str, Any]:
    """Return the protocol, flat; the data that a detection was annotated with under a name of its own."""
    return {"annotations" if name == "data" else name: value for name, value in flat(row.get("protocol")).items()}


def _lines(
    task: str,
    rows: Mapping[str, Row],
    groups: Mapping[tuple[str, str], Mapping[str, Row]],
    columns: Sequence[str],
    every_metric: bool,
) -> list[Line]:
    """Return the lines of one task under one protocol."""
    alike = [conditions(next(iter(other.values()))) for (name, _), other in groups.items() if name == task]
    own = conditions(next(iter(rows.values())))
    settings = {
        key: value for key, value in own.items() if key == "data" or any(other.get(key) != value for other in alike)
    }
    metrics = dict.fromkeys(name for row in rows.values() for name in row["metrics"])
    main = HEADLINES.get(task)
    shown = [name for name in metrics if (every_metric or main is None or name in main) and not name.endswith(SE)]
    ordered = [rows.get(column) for column in columns]
    return [
        Line(
            task,
            name,
            settings,
            tuple(_value(row, name) for row in ordered),
            tuple(error_of(row, name) for row in ordered),
            tuple(error_of_difference(ordered[0], row, name) for row in ordered),
        )
        for name in shown
    ]


def _value(row: Row | None, metric: str) -> float | None:
    value = row["metrics"].get(metric) if row else None
    return float(value) if value is not None and is_number(value) else None


def plot_comparison(table: ComparisonTable, path: Path) -> None:
    """Draw a group of bars for each line, one bar per column.

    Raises:
        UsageError: an ending that is no picture format, or a file that no comparison wrote.
        RunFailure: the file cannot be written.
    """
    if path.suffix not in PLOTS:
        raise UsageError(f"--plot {path}: name a file that ends in {', '.join(PLOTS)}")
    outputs = Outputs(path.parent, "compare", "--plot")
    outputs.check([path.name])
    count, columns = len(table.lines), len(table.columns)
    figure = Figure(figsize=(8, 1.2 + count * (0.25 + 0.22 * columns)), layout="constrained")
    axes = figure.add_subplot()
    height = 0.8 / columns
    for index, column in enumerate(table.columns):
        places = [position + (index - (columns - 1) / 2) * height for position in range(count)]
        errors = [line.errors[index] or 0.0 for line in table.lines]
        bars = axes.barh(
            places,
            [line.values[index] or 0.0 for line in table.lines],
            height * 0.92,
            label=column,
            xerr=errors,
            error_kw={"elinewidth": 1, "alpha": 0.6},
        )
        marks = ["" if line.values[index] is None else f"{line.values[index]:.1f}" for line in table.lines]
        axes.bar_label(bars, marks, padding=3, fontsize=8)
    axes.set_yticks(range(count), [line.title for line in table.lines], fontsize=9)
    axes.invert_yaxis()
    axes.margins(x=0.1)
    axes.set_xlabel("percent, with standard errors")
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside upper center", ncols=min(columns, 3), frameon=False, fontsize=9)
    content = io.BytesIO()
    figure.savefig(content, dpi=150, format=path.suffix[1:])
    outputs.write(path.name, content.getvalue())
