"""`mst inspect`: open every image and say what is there, what is wrong with it, and what to type next."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro
from rich.progress import track
from rich.table import Table
from rich.text import Text

from mst.errors import UsageError
from mst.paths import PathText, SourceText, user_path
from mst.runtime.memory import keep_freed_memory
from mst.runtime.signals import GracefulStop
from mst.terminal.output import emit, emit_json
from mst.terminal.parsing import parse_words

if TYPE_CHECKING:
    from mst.data.survey import ImageFacts

SHOWN = 10
"""Unreadable files and sizes that the table shows; --json has them all."""
MOST_CHANNELS = 64
ROWS = {
    "sizes": "sizes (H x W)",
    "shapes": "shapes",
    "shorter_sides": "shorter side",
    "modes": "modes",
    "formats": "formats",
    "depths": "depths",
    "parts": "parts",
    "classes": "classes",
}
MARKS = {"bad": "!", "note": "-", "good": "+"}


@dataclass(frozen=True)
class InspectOptions:
    """Open every image: counts, sizes, damage, duplicates, leaks between train and val, advice, the next command."""

    path: Annotated[tyro.conf.Positional[SourceText], tyro.conf.arg(metavar="PATH")] = ""
    """A folder (searched at any depth), an image, a text file with one path per line, or what --data.train takes."""
    val: SourceText = ""
    """Images to measure on, in another place: those that are in PATH, too, are found. Folders called train and val in
    PATH, lists (train.txt) and COCO files are understood without it."""
    out: PathText = ""
    """A page with charts and small pictures: one self-contained HTML file."""
    run: PathText = ""
    """A run folder: decoding is told as a share of its measured steps, too."""
    channels: int = 3
    """Channels of an image: 3 for RGB, 1 for grey, others for TIFFs of many bands and .npy files."""
    limit: int | None = None
    """Open only this many images, drawn evenly."""
    workers: int = 4
    """Threads; fewer where there is little memory."""
    by_content: bool = False
    """Open files with other extensions than images have, or none, and take those that begin as an image does."""
    value_range: tuple[float, float] | None = None
    """Black and white among values that are not stored in 8 bits; none = measured on a sample."""
    strict: bool = False
    """Refuse what cannot be used below the path, such as folders without permission and dead links."""
    json: bool = False
    """One JSON object on stdout."""

    def __post_init__(self) -> None:
        for name, value in (("--limit", self.limit), ("--workers", self.workers)):
            if value is not None and value < 1:
                raise UsageError(f"{name} {value}: must be a whole number of at least 1")
        if self.value_range is not None and not self.value_range[0] < self.value_range[1]:
            low, high = self.value_range
            raise UsageError(f"--value-range {low:g} {high:g}: must be two numbers, the first below the second")
        if not 1 <= self.channels <= MOST_CHANNELS:
            raise UsageError(f"--channels {self.channels}: must be a whole number of 1 to {MOST_CHANNELS}")

    @property
    def data_options(self) -> str:
        """The options of the data that a training has to be given as well."""
        words = []
        if self.channels != 3:
            words.append(f"--data.channels {self.channels}")
        if self.by_content:
            words.append("--data.by-content")
        if self.value_range is not None:
            words.append("--data.value-range {:g} {:g}".format(*self.value_range))
        return " ".join(words)


def run(argv: Sequence[str]) -> int:
    """Run the command; return the exit status."""
    options = parse_words(InspectOptions, argv, prog="mst inspect")
    if options is None:
        return 0
    if not options.path:
        raise UsageError("name a folder of images: mst inspect PATH")
    from mst.workflows.inspection import inspect, page_outputs, write_page

    keep_freed_memory()  # in one store for all threads: large images come one after the other
    page = user_path(options.out) if options.out else None
    outputs = page_outputs(page) if page is not None else None
    with GracefulStop("what was opened is evaluated; again ends at once") as stop:
        inspected = inspect(
            options.path,
            source=options.path,
            data_options=options.data_options,
            run=options.run or None,
            validation=[options.val] if options.val else [],
            channels=options.channels,
            limit=options.limit,
            workers=options.workers,
            strict=options.strict,
            by_content=options.by_content,
            value_range=options.value_range,
            progress=lambda facts, total: _shown_progress(facts, total, stop),
        )
    row = {**inspected.row, "of": len(inspected.images), "page": None if page is None else str(page)}
    if outputs is not None and page is not None:
        write_page(inspected, _title(options), outputs, page.name)
    if options.json:
        emit_json(row)
    else:
        emit(*_tables(row))
    return 0 if stop.signum is None else 128 + stop.signum


def _title(options: InspectOptions) -> str:
    from mst.runtime.names import shown

    return shown(Path(options.path).name or options.path)


def _shown_progress(facts: Iterator[ImageFacts], total: int, stop: GracefulStop) -> Iterable[ImageFacts]:
    """Draw a bar on stderr while the images are opened; end where a signal asks for it."""
    from mst.runtime.logging import console

    for fact in track(facts, "images", total=total, console=console, transient=True, disable=not console.is_terminal):
        yield fact
        if stop.signum is not None:
            return


def _tables(row: dict[str, Any]) -> list[Table | Text]:
    """Return the tables for a person."""
    table = Table(box=None, show_header=False, pad_edge=False)
    stopped = f" of {row['of']}, stopped before the end" if row["images"] < row["of"] else ""
    table.add_row("images", f"{row['images']}{stopped} ({row['bytes'] / 1e6:.1f} MB)")
    table.add_row("unreadable", f"{len(row['unreadable'])}{_counted(row['unreadable_kinds'])}")
    if row["truncated"]:
        table.add_row("truncated", f"{len(row['truncated'])} more, readable without their end")
    if row["readable"]:
        _add_pictures(table, row)
    if row["value_range_problem"]:
        table.add_row("value range", row["value_range_problem"])
    if row["same_names"]:
        table.add_row("same names", f"{row['same_names']} images have the name of another in another folder")
    tables: list[Table | Text] = [table]
    for title, rows in _lists(row):
        listed = Table(title, "", box=None, pad_edge=False)
        for first, second in rows[:SHOWN]:
            listed.add_row(Text(first), Text(second))
        if len(rows) > SHOWN:
            listed.add_row(f"and {len(rows) - SHOWN} more (--json, --out PAGE.html)", "")
        tables.append(listed)
    if row["passed_over"]:
        passed = Table("passed over", "", "why", "such as", box=None, pad_edge=False)
        for entry in row["passed_over"]:
            passed.add_row(entry["kind"], str(entry["count"]), Text(entry["reason"]), Text("\n".join(entry["names"])))
        tables.append(passed)
    advice = Table("", "advice", box=None, pad_edge=False)
    for entry in row["advice"]:
        advice.add_row(MARKS[entry["level"]], Text(entry["text"]))
    tables.append(advice)
    if row["page"]:
        tables.append(Text(f"page: {row['page']}"))
    return [*tables, Text(f"next: {row['next']}")]


def _add_pictures(table: Table, row: dict[str, Any]) -> None:
    """Add what is known of the pictures."""
    table.add_row("sides", f"{row['shortest_side']} to {row['longest_side']} px")
    for key, title in ROWS.items():
        found = list(row[key].items())
        rest = f", and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
        if found:
            table.add_row(title, Text(", ".join(f"{name} ({count})" for name, count in found[:SHOWN]) + rest))
    table.add_row("grey", f"{row['grey']} of {row['pictures']} have no colours")
    if row["blank"]:
        table.add_row("blank", f"{len(row['blank'])} blank or nearly")
    for key, title in (("exact_duplicates", "exact copies"), ("near_duplicates", "near duplicates")):
        found = row[key]
        table.add_row(title, f"{found['images']}{' or more' * (key[0] == 'n' and row['near_duplicates_cut'])}")
    if row["parts"]:
        leaks = row["leaks"]
        table.add_row("leaks", f"{len(leaks['exact'])} exact, {len(leaks['near'])} near, between parts")
    for depth, (low, high) in row["values"].items():
        table.add_row("values", f"{depth}: {low:g} to {high:g} as stored")
    for kind, (low, high) in row["value_ranges"].items():
        source = "as given" if kind == "given" else f"{kind}, measured; pretrain --data.value-range LO HI sets another"
        table.add_row("value range", f"{low:.15g} to {high:.15g} ({source})")
    if row["turned"]:
        table.add_row("turned", f"{row['turned']} by their EXIF orientation")
    for key in ("mean", "std"):
        table.add_row(key, " ".join(f"{value:.3f}" for value in row[key]))
    if cost := row["decoding"]:
        share = f", {100 * cost['share_of_step']:.3g} % of a step of {cost['run']}" if "run" in cost else ""
        each = f"{cost['milliseconds']:.2g} ms an image{share}, {cost['per_core']:.0f} images/s a core"
        table.add_row("decoding", Text(f"{each}, {cost['images_per_second']:.0f} on {cost['cores']}"))


def _lists(row: dict[str, Any]) -> list[tuple[str, list[tuple[str, str]]]]:
    """Return titles and lines of the files that a person may want to look at."""
    leaks = [(first, " = ".join(rest)) for first, *rest in row["leaks"]["exact"]]
    leaks += [(first, f"nearly {' = '.join(rest)}") for first, *rest in row["leaks"]["near"]]
    lists = [
        ("unreadable", [(entry["path"], entry["reason"]) for entry in row["unreadable"]]),
        ("truncated", [(name, "its end is missing") for name in row["truncated"]]),
        ("in several parts", leaks),
        ("in several classes", [(first, " = ".join(rest)) for first, *rest in row["conflicts"]]),
        ("blank", [(name, "") for name in row["blank"]]),
        *(
            (title, [(group[0], _others(group)) for group in row[key]["groups"]])
            for key, title in (("exact_duplicates", "exact copies"), ("near_duplicates", "nearly the same"))
        ),
    ]
    return [(title, rows) for title, rows in lists if rows]


def _others(group: list[str]) -> str:
    more = f", and {len(group) - 2} more" if len(group) > 2 else ""
    return f"{group[1]}{more}"


def _counted(kinds: dict[str, int]) -> str:
    return f" ({', '.join(f'{count} {kind}' for kind, count in kinds.items())})" if kinds else ""
