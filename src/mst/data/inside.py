"""Which images lie in a folder that is going to be deleted, by whatever way their names lead there."""

from __future__ import annotations

import os
from itertools import pairwise
from pathlib import Path

from mst.data.sources.index import ImageIndex
from mst.data.sources.protocol import ImageSource, within
from mst.errors import UsageError
from mst.runtime.names import shown


def refuse_inside(folder: Path, *images: ImageSource) -> None:
    """Refuse a run folder that is going to be deleted and holds images.

    Raises:
        UsageError: names the first.
    """
    for source in images:
        inside = first_inside(source, folder) if isinstance(source, ImageIndex) else within(source, folder)
        if inside is not None:
            raise UsageError(
                f"--out {shown(folder)} holds the image {shown(inside)}, which --overwrite would delete: "
                "name another folder"
            )


def first_inside(images: ImageIndex, folder: Path) -> Path | None:
    """Return the first image whose file lies in a folder, links in its path followed; None = no image does.

    Links are resolved once for each folder of images, not for each image; a million names take about a second.

    Args:
        images: as a run would read them.
        folder: need not exist.
    """
    root = os.path.realpath(os.fsencode(folder))
    links: dict[bytes, frozenset[bytes] | None] = {}
    for first, last in pairwise(images.ends.tolist()):
        place, name = os.path.split(images.block[first:last])
        if place not in links:
            links[place] = _links_inside(place, root)
        inside = links[place]
        if inside is None or name in inside:
            return Path(os.fsdecode(os.path.join(place, name)))
    return None


def _links_inside(place: bytes, root: bytes) -> frozenset[bytes] | None:
    """Return the names in a folder that are links to files inside `root`; None = the folder itself lies inside."""
    if _is_inside(place, root):
        return None
    try:
        with os.scandir(place) as entries:
            return frozenset(e.name for e in entries if e.is_symlink() and _is_inside(e.path, root))
    except OSError:
        return frozenset()


def _is_inside(path: bytes, root: bytes) -> bool:
    real = os.path.realpath(path)
    return real == root or real.startswith(root.rstrip(b"/") + b"/")
