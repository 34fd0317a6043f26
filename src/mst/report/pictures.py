"""Pictures as data URIs, small enough for a page that carries them itself."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mst.report.reading import printable, read_bytes
from mst.report.results import TASKS
from mst.runtime.images import open_image
from mst.runtime.storage.rundir import UNTRAINED

LARGE = 400_000  # bytes: above this a picture is shrunk and compressed
LONGEST = 1400  # pixels
SHOWN = 4
PANELS = {
    "detection": ("annotated", "found"),
    "segmentation": ("image", "annotated", "predicted"),
    "patch_segmentation": ("image", "annotated", "predicted"),
    "objectness": ("objects and the box found", "attention", "chosen"),
    "patch_objectness": ("objects and the box found", "side of the cut", "chosen"),
}
"""What the columns of a task's pictures show."""


@dataclass(frozen=True)
class Picture:
    """One picture of the page: its caption, its data URI, and the titles of its columns."""

    caption: str
    uri: str
    columns: Sequence[str]


@dataclass(frozen=True)
class TaskPictures:
    """Some pictures of one evaluation."""

    title: str
    pictures: Sequence[Picture]


def task_pictures(folders: Mapping[str, Sequence[Path]]) -> list[TaskPictures]:
    """Return some pictures of each evaluation, trained networks first; folders without pictures are left out.

    Args:
        folders: pictures by the name of their folder in the run's `pictures/`: a task, or a task and `-untrained`.
    """
    found = []
    for name in sorted(folders, key=lambda name: (name.endswith(UNTRAINED), name)):
        task = name.removesuffix(UNTRAINED)
        title = TASKS.get(task, task.replace("_", " "))
        shown = pictures(folders[name], PANELS.get(task, ()))
        if shown:
            found.append(TaskPictures(f"{title}, untrained network" if name.endswith(UNTRAINED) else title, shown))
    return found


def pictures(paths: Sequence[Path], columns: Sequence[str]) -> list[Picture]:
    """Return the first, the last and some between; files that are no pictures are left out."""
    found = []
    for path in spread(paths, SHOWN):
        try:
            found.append(Picture(caption(path), data_uri(path), columns))
        except (OSError, ValueError, SyntaxError):
            continue
    return found


def spread(paths: Sequence[Path], count: int) -> list[Path]:
    """Return at most `count` of the paths, evenly spaced, the first and the last among them."""
    if len(paths) <= count:
        return list(paths)
    return [paths[round(index * (len(paths) - 1) / (count - 1))] for index in range(count)]


def caption(path: Path) -> str:
    """`step_0000400.png` -> `step 400`; any other name as it is."""
    match = re.fullmatch(r"step_(\d+)", path.stem)
    if not match:
        return printable(path.stem).replace("_", " ")
    step = int(match[1])
    return f"step {step}" if step else "untrained"


def data_uri(path: Path, *, small: bool = True) -> str:
    """Return a PNG as it is, or as WebP if it is large; of moderate size where it is to be `small`.

    Raises:
        OSError, ValueError, SyntaxError: no picture.
    """
    content = read_bytes(path)
    with open_image(content, formats=("PNG",)) as image:
        if len(content) <= LARGE:
            return f"data:image/png;base64,{base64.b64encode(content).decode()}"
        shrunk = image.convert("RGB")
        if small:
            shrunk.thumbnail((LONGEST, LONGEST))
        buffer = io.BytesIO()
        shrunk.save(buffer, format="WEBP", quality=82)
    return f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}"
