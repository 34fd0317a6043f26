"""`mst inspect`: open every image and say what is there: counts, sizes, modes, statistics, unreadable files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.progress import track
from rich.table import Table

from mst.commands.output import emit, emit_json
from mst.commands.tyro_cli import parse_words
from mst.errors import UsageError

SHOWN = 10
"""Unreadable files and sizes that the table shows; --json has them all."""


@dataclass(frozen=True)
class InspectOptions:
    """Open every image of a folder: counts, sizes, modes, statistics, unreadable files."""

    path: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="PATH")] = ""
    """A folder (searched at any depth), an image, or a text file with one path per line."""
    limit: int | None = None
    """Open only this many images, drawn evenly."""
    workers: int = 4
    """Threads."""
    json: bool = False
    """One JSON object on stdout."""

    def __post_init__(self) -> None:
        for name, value in (("--limit", self.limit), ("--workers", self.workers)):
            if value is not None and value < 1:
                raise UsageError(f"{name} {value}: must be a whole number of at least 1")


@dataclass(frozen=True)
class ImageFacts:
    """What one file holds.

    Attributes:
        path: the file.
        reason: why it cannot be read; empty for a readable one.
        size: (H, W), upright.
        mode: Pillow's name for its channels.
        form: Pillow's name for its format.
        mean: of the RGB values in [0, 1], per channel.
        square: mean of their squares.
    """

    path: Path
    reason: str = ""
    size: tuple[int, int] = (0, 0)
    mode: str = ""
    form: str = ""
    mean: tuple[float, ...] = ()
    square: tuple[float, ...] = ()


def run(argv: Sequence[str]) -> int:
    """Run the command; return the exit status."""
    options = parse_words(InspectOptions, argv, prog="mst inspect")
    if options is None:
        return 0
    if not options.path:
        raise UsageError("name a folder of images: mst inspect PATH")
    summary = inspect_images(options.path, limit=options.limit, workers=options.workers)
    if options.json:
        emit_json(summary)
    else:
        emit(*_tables(summary))
    return 0


def inspect_images(path: str, *, limit: int | None = None, workers: int = 4) -> dict[str, Any]:
    """Open the images under `path`.

    Returns:
        images, readable, unreadable (list of {path, reason}), sizes, modes, formats (counts), shortest and longest
        side in pixels, mean and std per RGB channel in [0, 1] (over images, each with equal weight).

    Raises:
        UsageError: the path does not exist or holds no images.
    """
    facts = list(_scan(path, limit, workers))
    readable = [fact for fact in facts if not fact.reason]
    sides = [side for fact in readable for side in fact.size]
    mean, std = _statistics(readable)
    return {
        "images": len(facts),
        "readable": len(readable),
        "unreadable": [{"path": str(fact.path), "reason": fact.reason} for fact in facts if fact.reason],
        "sizes": _counts(f"{fact.size[0]}x{fact.size[1]}" for fact in readable),
        "shortest_side": min(sides, default=None),
        "longest_side": max(sides, default=None),
        "modes": _counts(fact.mode for fact in readable),
        "formats": _counts(fact.form for fact in readable),
        "mean": mean,
        "std": std,
    }


def image_facts(path: Path) -> ImageFacts:
    """Open one file completely; a broken one is a fact, not an error."""
    import torch
    from PIL import Image

    from mst.data.decoding import UnreadableImage, decode_image

    try:
        pixels = decode_image(path, channels=3)  # [3, H, W]
        with Image.open(path) as image:
            mode, form = image.mode, image.format or "unknown"
    except UnreadableImage as problem:
        return ImageFacts(path, problem.reason)
    except OSError as problem:
        return ImageFacts(path, str(problem))
    values = pixels.flatten(1).to(torch.float32) / 255  # [3, H*W]
    height, width = pixels.shape[-2:]
    mean, square = values.mean(1), values.square().mean(1)  # [3]
    return ImageFacts(path, "", (height, width), mode, form, tuple(mean.tolist()), tuple(square.tolist()))


def _scan(path: str, limit: int | None, workers: int) -> Iterator[ImageFacts]:
    """Open the images in threads, in order, with a progress bar on stderr."""
    from mst.data.sources import index_images
    from mst.runtime.logging import console

    images = index_images(path, limit=limit)
    with ThreadPoolExecutor(workers) as pool:
        opened = pool.map(image_facts, images)
        hidden = not console.is_terminal
        yield from track(opened, "images", total=len(images), console=console, transient=True, disable=hidden)


def _statistics(facts: list[ImageFacts]) -> tuple[list[float], list[float]]:
    """Return mean and standard deviation of the channels."""
    if not facts:
        return [], []
    count = len(facts)
    mean = [sum(values) / count for values in zip(*(fact.mean for fact in facts), strict=True)]
    square = [sum(values) / count for values in zip(*(fact.square for fact in facts), strict=True)]
    std = [max(s - m * m, 0.0) ** 0.5 for m, s in zip(mean, square, strict=True)]
    return [round(value, 4) for value in mean], [round(value, 4) for value in std]


def _counts(names: Iterator[str]) -> dict[str, int]:
    """Count, most frequent first."""
    return dict(Counter(names).most_common())


def _tables(summary: dict[str, Any]) -> list[Table]:
    """Return the tables for a person."""
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_row("images", str(summary["images"]))
    table.add_row("unreadable", str(len(summary["unreadable"])))
    if summary["readable"]:
        table.add_row("sides", f"{summary['shortest_side']} to {summary['longest_side']} px")
        for key in ("sizes", "modes", "formats"):
            found = list(summary[key].items())
            rest = f", and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
            table.add_row(key, ", ".join(f"{name} ({count})" for name, count in found[:SHOWN]) + rest)
        for key in ("mean", "std"):
            table.add_row(key, " ".join(f"{value:.3f}" for value in summary[key]))
    tables = [table]
    if summary["unreadable"]:
        broken = Table("unreadable", "why", box=None, pad_edge=False)
        for row in summary["unreadable"][:SHOWN]:
            broken.add_row(row["path"], row["reason"])
        tables.append(broken)
    return tables
