"""Curves as inline SVG drawn by matplotlib, in colours that the page's style sheet sets for light and dark."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

Points = Sequence[tuple[int, float]]

INK, GRID, MARK = "#010101", "#020202", "#030303"
"""Placeholders that `themed` turns into the page's colours."""
PALETTE = ("#a10000", "#a20000", "#a30000")
MANY_POINTS = 80
"""Above this a curve is drawn faint, with its moving average on top."""
SIZE, SMALL_SIZE = (5.2, 2.5), (2.7, 1.7)
"""Width and height in inches: stretched to the width of a column, so this sets how large the letters are."""


@dataclass(frozen=True)
class Series:
    """One curve: its name in the legend and its (step, value) points; a faint one is of steps that a run left."""

    name: str
    points: Points
    unit: str = ""
    faint: bool = False


@dataclass(frozen=True)
class Chart:
    """One plot with what a reader should see in it.

    Attributes:
        title: the quantity.
        note: one sentence on how to read it.
        series: the curves, in the order of the palette.
        reference: name and height of a dashed line.
        log: logarithmic y axis.
        percent: y values are shares, shown in percent.
        marks: steps at which something went wrong, from and to; the line of each stands at the first.
    """

    title: str
    note: str
    series: Sequence[Series] = field(default_factory=tuple)
    reference: tuple[str, float] | None = None
    log: bool = False
    percent: bool = False
    marks: Sequence[tuple[float, float]] = ()


def draw(chart: Chart, *, small: bool = False) -> str:
    """Return the chart as an <svg> element that takes the width it is given; no curve may be empty."""
    # A Figure of its own, without pyplot: no global state but these two settings, which are put back.
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": chart.title}):
        figure = Figure(figsize=SMALL_SIZE if small else SIZE, layout="constrained")
        axes = figure.add_subplot()
        figure.patch.set_visible(False)
        axes.patch.set_visible(False)
        for start, end in chart.marks:
            axes.axvspan(start, end, color=MARK, alpha=0.12, linewidth=0)
            axes.axvline(start, color=MARK, alpha=0.9, linewidth=1.2)
        for series in chart.series:
            if series.faint:
                axes.plot(*np.asarray(series.points, dtype=float).T, color=INK, alpha=0.45, linewidth=1.0)
        for colour, series in zip(PALETTE, [series for series in chart.series if not series.faint], strict=False):
            _curve(axes, series.points, colour)
        if chart.reference:
            axes.axhline(chart.reference[1], color=INK, alpha=0.45, linewidth=1, dashes=(4, 3))
        _style(axes, chart, ticks=3 if small else 5)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Title": chart.title})
    return themed(buffer.getvalue())


def _curve(axes: Axes, points: Points, colour: str) -> None:
    """Draw one curve; a long one faint under its moving average, a short one with its points."""
    steps, values = np.asarray(points, dtype=float).T
    if len(points) <= MANY_POINTS:
        marker = "o" if len(points) <= MANY_POINTS // 4 else None
        axes.plot(steps, values, color=colour, linewidth=1.7, marker=marker, markersize=3.2, solid_capstyle="round")
        return
    axes.plot(steps, values, color=colour, linewidth=0.8, alpha=0.35)
    width = max(3, len(points) // 40)
    padded = np.pad(values, (width // 2, width - 1 - width // 2), mode="edge")
    axes.plot(steps, np.convolve(padded, np.full(width, 1 / width), mode="valid"), color=colour, linewidth=1.7)


def _style(axes: Axes, chart: Chart, *, ticks: int) -> None:
    """Leave only what helps reading: faint horizontal lines, few ticks, no frame."""
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(GRID)
    axes.grid(axis="y", color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(length=0, labelsize=8.5, labelcolor=INK, pad=5)
    axes.margins(x=0.015, y=0.08)
    axes.xaxis.set_major_locator(MaxNLocator(ticks, integer=True))
    if chart.log:
        axes.set_yscale("log")
        axes.tick_params(which="minor", length=0, labelsize=8.5, labelcolor=INK)
    else:
        axes.yaxis.set_major_locator(MaxNLocator(ticks))
    if chart.percent:
        axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.3g} %")


def themed(svg: str) -> str:
    """Cut the <svg> element out of a document and let the page decide its colours, its font and its size."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r"; font-family: [^;\"]*", "", svg)
    svg = re.sub(r' id="(?!p)[^"]*"', "", svg)  # clip paths keep theirs, they are hashes of the title
    svg = re.sub(r"<!--.*?-->", "", svg, flags=re.DOTALL)
    for index, colour in enumerate(PALETTE):
        svg = svg.replace(colour, f"var(--line-{index + 1})")
    svg = svg.replace(MARK, "var(--bad)")
    return svg.replace(INK, "var(--muted)").replace(GRID, "var(--hairline)")
