"""The page of an inspection: one self-contained HTML file of counts, advice and small pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from mst.report import numbers

TEMPLATES = Path(__file__).parent
BARS = 12
"""Bars of a chart; the rest is counted together."""
LISTED = 50
"""Files that a list shows."""
CHARTS = {
    "shapes": ("Shapes", "Height to width."),
    "shorter_sides": ("Shorter side", "In pixels."),
    "sizes": ("Sizes", "Height x width, most frequent first."),
    "modes": ("Modes", "How colours are stored: L grey, RGB colour, P palette, A with transparency."),
    "formats": ("Formats", "By content, not by name."),
    "depths": ("Depths", "Of stored values."),
    "parts": ("Parts", "By folders, lists or COCO files."),
    "classes": ("Classes", "By folders, largest first."),
}


class Thumbnail(NamedTuple):
    """A small picture: its short name, its whole name, its data URI ("" = cannot be read) and its part."""

    name: str
    path: str
    uri: str
    part: str


class Shelf(NamedTuple):
    """Pictures of one kind: how many groups there are, and those that are shown."""

    title: str
    note: str
    number: int
    groups: Sequence[Sequence[Thumbnail]]


class Bar(NamedTuple):
    """One bar: its label, its count, its length in percent of the longest."""

    label: str
    number: int
    length: float


def page(title: str, row: Mapping[str, Any], shelves: Sequence[Shelf]) -> str:
    """Return the page.

    Args:
        title: what was inspected.
        row: what `mst.workflows.inspection.inspect` returned.
        shelves: pictures.
    """
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(short=numbers.short)
    charts = [(*words, bars(row[key])) for key, words in CHARTS.items() if row.get(key)]
    return environment.get_template("inspection.html.j2").render(
        title=title,
        row=row,
        facts=facts(row),
        charts=charts,
        shelves=shelves,
        listed=LISTED,
        style=Markup((TEMPLATES / "report.css").read_text(encoding="utf-8")),
    )


def bars(counts: Mapping[str, int]) -> list[Bar]:
    """Return the bars of counts."""
    items = list(counts.items())
    if len(items) > BARS:
        rest = items[BARS - 1 :]
        items = [*items[: BARS - 1], (f"{len(rest)} others", sum(count for _, count in rest))]
    most = max((count for _, count in items), default=1)
    return [Bar(label, count, round(100 * count / max(most, 1), 1)) for label, count in items]


def facts(row: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Return names, values and remarks of the header."""
    readable = row["readable"]
    cost = row.get("decoding")
    found = [
        ("Images", numbers.short(row["images"]), f"{row['bytes'] / 1e6:.1f} MB"),
        ("Unreadable", numbers.short(len(row["unreadable"])), f"{len(row['truncated'])} more lack their end"),
        ("Sides", f"{row['shortest_side']} to {row['longest_side']} px" if readable else numbers.NONE, ""),
        ("Grey", numbers.short(row["grey"]), "without colours, however stored"),
        ("Exact copies", numbers.short(row["exact_duplicates"]["images"]), "that could go"),
        ("Near duplicates", numbers.short(row["near_duplicates"]["images"]), "that could go"),
        ("Blank", numbers.short(len(row["blank"])), ""),
        ("In several parts", numbers.short(sum(map(len, row["leaks"].values()))) if row["parts"] else numbers.NONE, ""),
        ("Mean", " ".join(f"{value:.3f}" for value in row["mean"]) or numbers.NONE, "of channels in [0, 1]"),
        ("Deviation", " ".join(f"{value:.3f}" for value in row["std"]) or numbers.NONE, ""),
    ]
    if cost:
        share = f", {100 * cost['share_of_step']:.3g} % of a step" if "run" in cost else ""
        words = f"{cost['milliseconds']:.2g} ms each{share}, {cost['cores']} cores"
        found.append(("Decoding", f"{cost['images_per_second']:.0f} images/s", words))
    return found
