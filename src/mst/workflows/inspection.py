"""An inspection of images with advice, and its page."""

from __future__ import annotations

import os
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mst.data.inspection.advice import advise, next_command
from mst.data.inspection.cost import decoding_cost
from mst.data.inspection.thumbnails import thumbnail
from mst.data.sources import Source, even_positions
from mst.data.survey import Inspected, look_through
from mst.errors import UsageError
from mst.paths import user_path
from mst.report.inspection import Shelf, Thumbnail, page
from mst.report.reading import is_number
from mst.runtime.names import shown
from mst.runtime.storage.outputs import Outputs
from mst.runtime.storage.results import read_jsonl
from mst.runtime.storage.rundir import open_run_dir

GROUPS, OF_A_GROUP, SINGLE, DRAWN = 12, 4, 12, 32
"""What the page shows: groups of images that are alike, images of each, others of a kind, and of the whole set."""


def inspect(
    paths: Source | Iterable[Source],
    *,
    source: str = "",
    data_options: str = "",
    run: str | Path | None = None,
    **options: Any,
) -> Inspected:
    """Open all images, and say what is there, what is wrong with it and what to do.

    Args:
        paths: images, as of `mst.data.sources.open_images`.
        source: the path as the user typed it, for the commands in the advice.
        data_options: options of the data for the next command.
        run: a run folder whose measured steps decoding is compared with; None = decoding by itself.
        options: as of `mst.data.survey.look_through`.

    Returns:
        what was found; `row` has `decoding`, `advice` (list of {level, about, text}) and `next` besides.

    Raises:
        UsageError, DataError: as `look_through`; or no such run.
    """
    step = None if run is None else step_milliseconds(user_path(run))
    inspected = look_through(paths, **options)
    row = inspected.row
    source = source or os.fsdecode(paths if isinstance(paths, str | bytes | os.PathLike) else next(iter(paths)))
    row["decoding"] = decoding_cost(inspected.images, inspected.channels, inspected.scale)
    if row["decoding"] is not None and step is not None:
        row["decoding"] |= {"step_milliseconds": round(step, 3), "run": str(run)}
        row["decoding"]["share_of_step"] = round(row["decoding"]["milliseconds"] / step, 4)
    row["advice"] = [advice._asdict() for advice in advise(row, shown(source))]
    row["next"] = next_command(row, source, data_options)
    return inspected


def step_milliseconds(run: Path) -> float:
    """Return the milliseconds of a run's step for an image: the median of its rows, without waiting for data.

    Raises:
        UsageError: there is no run, or none of its rows says it.
    """
    rows = read_jsonl(open_run_dir(run).metrics)
    found: list[float] = [
        1000 * (1 - row["data_wait"]) / row["images_per_second"]
        for row in rows
        if all(is_number(row.get(key)) for key in ("images_per_second", "data_wait")) and row["images_per_second"] > 0
    ]
    if not found:
        raise UsageError(f"--run {shown(run)}: no row of its metrics has the speed of its steps: let it run for longer")
    return max(statistics.median(found), 1e-6)


def page_outputs(path: Path) -> Outputs:
    """Return where the page goes, checked before the work.

    Raises:
        UsageError: a file is there that this command did not write.
    """
    outputs = Outputs(path.parent, "inspect", "mst inspect --out")
    outputs.check([path.name])
    return outputs


def write_page(inspected: Inspected, title: str, outputs: Outputs, name: str) -> None:
    """Write the page about an inspection.

    Raises:
        RunFailure: the disk refused.
    """
    outputs.write(name, page(title, inspected.row, _shelves(inspected)).encode())


def _shelves(inspected: Inspected) -> list[Shelf]:
    """Return the images that the page shows."""
    found, images = inspected.findings, inspected.images

    def small(position: int) -> Thumbnail:
        name = shown(images.name(position))
        part = found.places.parts[found.places.part[position]]
        uri = thumbnail(images, position, inspected.channels, inspected.scale)
        return Thumbnail(name.rpartition("/")[2], name, uri, part)

    def shelf(title: str, note: str, groups: Sequence[Sequence[int]]) -> Shelf:
        chosen = groups[:GROUPS]
        return Shelf(title, note, len(groups), [[small(place) for place in group[:OF_A_GROUP]] for group in chosen])

    leaks = [*found.leaks(found.exact), *found.leaks(found.near)]
    pictures = np.flatnonzero(~found.places.masks)
    drawn = pictures[even_positions(len(pictures), DRAWN)].tolist()
    shelves = [
        shelf("In several parts", "The same image, or nearly, among those to train on and those to measure on.", leaks),
        shelf("In several classes", "The same image, or nearly, under different labels.", found.conflicts()),
        shelf("Exact copies", "Files with the same bytes.", found.exact),
        shelf("Nearly the same", "Other files that show nearly the same.", found.near),
        Shelf("Blank", "All pixels the same, or nearly.", len(found.blank), [list(map(small, found.blank[:SINGLE]))]),
        Shelf("Some of all", "At even distances.", len(pictures), [list(map(small, drawn))]),
    ]
    return [one for one in shelves if one.number]
