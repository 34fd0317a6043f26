"""`mst compare RUN RUN ...`: the results of several runs in one table, with differences to the first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import tyro
from rich.table import Table
from rich.text import Text

from mst.errors import UsageError
from mst.paths import PathText, user_path
from mst.report.compare import ComparisonTable, Line, compare_results, plot_comparison
from mst.runtime.noise import with_error
from mst.runtime.storage.files import check_folder
from mst.terminal.output import emit, emit_json
from mst.terminal.parsing import parse_words


@dataclass(frozen=True)
class CompareArguments:
    """Results of several runs in one table, ± their standard errors by the choice of validation images.

    A number in brackets is the difference to the first column; below two of its standard errors it is within noise.

    Attributes:
        runs: run folders or results.jsonl files.
        all: every metric instead of each task's main ones.
        plot: also draw the table as bars into this file (.png, .svg or .pdf).
        json: one JSON object on stdout instead of a table.
    """

    runs: tyro.conf.Positional[tuple[PathText, ...]] = ()
    all: bool = False
    plot: PathText | None = None
    json: bool = False


def run(argv: Sequence[str]) -> int:
    """Run the command; return the exit status."""
    a = parse_words(CompareArguments, argv, prog="mst compare")
    if a is None:
        return 0
    if not a.runs:
        raise UsageError("name runs to compare: mst compare RUN RUN ...")
    if a.plot:
        check_folder(user_path(a.plot).parent, "--plot")
    table = compare_results([user_path(name) for name in a.runs], every_metric=a.all)
    if a.plot:
        plot_comparison(table, user_path(a.plot))
    if a.json:
        emit_json(table.to_json())
    else:
        emit(_table(table))
    return 0


def _table(table: ComparisonTable) -> Table:
    shown = Table("percent", box=None, pad_edge=False)
    for column in table.columns:
        shown.add_column(column, justify="right")
    for line in table.lines:
        shown.add_row(line.title, *(_cell(line, index) for index in range(len(table.columns))))
    return shown


def _cell(line: Line, index: int) -> Text:
    """Return a value with its standard error, and its difference to the first column; grey where that may be chance."""
    value, difference, se = line.values[index], line.differences[index], line.difference_errors[index]
    if value is None:
        return Text("-")
    shown = Text(with_error(value, line.errors[index]))
    if index == 0 or difference is None:
        return shown
    if se is None:
        return shown.append(f" ({difference:+.2f})")
    if line.within_noise[index]:
        return shown.append(f" ({difference:+.1f} ± {se:.1f}, within noise)", style="dim")
    return shown.append(f" ({difference:+.1f} ± {se:.1f})", style="green" if difference > 0 else "red")
