"""`mst inspect`: open every image and say what is there: counts, sizes, modes, statistics, unreadable files."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import tyro
from rich.progress import track
from rich.table import Table
from rich.text import Text

from mst.errors import UsageError
from mst.paths import PathText
from mst.runtime.memory import keep_freed_memory
from mst.terminal.output import emit, emit_json
from mst.terminal.parsing import parse_words

if TYPE_CHECKING:
    from mst.data.survey import ImageFacts

SHOWN = 10
"""Unreadable files and sizes that the table shows; --json has them all."""
MOST_CHANNELS = 64
ROWS = {"sizes": "sizes (H x W)", "modes": "modes", "formats": "formats", "depths": "depths"}


@dataclass(frozen=True)
class InspectOptions:
    """Open every image of a folder: counts, sizes, modes, statistics, unreadable files."""

    path: Annotated[tyro.conf.Positional[PathText], tyro.conf.arg(metavar="PATH")] = ""
    """A folder (searched at any depth), an image, or a text file with one path per line."""
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


def run(argv: Sequence[str]) -> int:
    """Run the command; return the exit status."""
    options = parse_words(InspectOptions, argv, prog="mst inspect")
    if options is None:
        return 0
    if not options.path:
        raise UsageError("name a folder of images: mst inspect PATH")
    from mst.data.survey import inspect_images

    keep_freed_memory()  # in one store for all threads: large images come one after the other
    summary = inspect_images(
        options.path,
        channels=options.channels,
        limit=options.limit,
        workers=options.workers,
        strict=options.strict,
        by_content=options.by_content,
        value_range=options.value_range,
        progress=_shown_progress,
    )
    if options.json:
        emit_json(summary)
    else:
        emit(*_tables(summary))
    return 0


def _shown_progress(facts: Iterator[ImageFacts], total: int) -> Iterable[ImageFacts]:
    """Draw a bar on stderr while the images are opened."""
    from mst.runtime.logging import console

    return track(facts, "images", total=total, console=console, transient=True, disable=not console.is_terminal)


def _tables(summary: dict[str, Any]) -> list[Table]:
    """Return the tables for a person."""
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_row("images", str(summary["images"]))
    table.add_row("unreadable", str(len(summary["unreadable"])))
    if summary["readable"]:
        table.add_row("sides", f"{summary['shortest_side']} to {summary['longest_side']} px")
        for key, title in ROWS.items():
            found = list(summary[key].items())
            rest = f", and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
            table.add_row(title, ", ".join(f"{name} ({count})" for name, count in found[:SHOWN]) + rest)
        for depth, (low, high) in summary["values"].items():
            table.add_row("values", f"{depth}: {low:g} to {high:g} as stored")
        for kind, (low, high) in summary["value_ranges"].items():
            source = (
                "as given" if kind == "given" else f"{kind}, measured; pretrain --data.value-range LO HI sets another"
            )
            table.add_row("value range", f"{low:.15g} to {high:.15g} ({source})")
        if summary["turned"]:
            table.add_row("turned", f"{summary['turned']} by their EXIF orientation")
        for key in ("mean", "std"):
            table.add_row(key, " ".join(f"{value:.3f}" for value in summary[key]))
    if summary["value_range_problem"]:
        table.add_row("value range", summary["value_range_problem"])
    if summary["same_names"]:
        table.add_row("same names", f"{summary['same_names']} images have the name of another in another folder")
    tables = [table]
    if summary["unreadable"]:
        broken = Table("unreadable", "why", box=None, pad_edge=False)
        for row in summary["unreadable"][:SHOWN]:
            broken.add_row(Text(row["path"]), Text(row["reason"]))
        tables.append(broken)
    if summary["passed_over"]:
        passed = Table("passed over", "", "why", "such as", box=None, pad_edge=False)
        for row in summary["passed_over"]:
            passed.add_row(row["kind"], str(row["count"]), Text(row["reason"]), Text("\n".join(row["names"])))
        tables.append(passed)
    return tables
