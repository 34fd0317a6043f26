"""Whether images that are scored are among those that are learned from: by path and by content, cheaply."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mst.data.labels.folders import subfolders
from mst.data.labels.record import NAMES
from mst.data.sources import ImageIndex, ImageSource, even_positions
from mst.errors import UsageError
from mst.runtime import logging
from mst.runtime.names import shown

LOOKED_AT = 64
"""Images to score, at even distances, that are looked for."""
MOST_SIZES = 20_000
"""Images to learn from, at even distances, whose sizes are asked for; more would take seconds and longer."""
MOST_NAMED = 1 << 20
"""Images that are no files of their own whose names are compared."""
MOST_COMPARED = 1 << 20
"""Bytes of each image that are compared."""


@dataclass(frozen=True)
class Overlap:
    """Images to score that are images to learn from.

    Attributes:
        looked: images to score that were looked for.
        found: how many of them were found.
        first: one of them.
    """

    looked: int
    found: int
    first: str

    def __str__(self) -> str:
        return f"{self.found} of the {self.looked} validation images looked at are training images too"


def shared_images(train: ImageSource, scored: ImageSource) -> Overlap:
    """Look for images to score among those to learn from: the same path, or the same content under any name."""
    looked = even_positions(len(scored), LOOKED_AT).tolist()
    few = not isinstance(train, ImageIndex) and len(train) <= MOST_NAMED
    others = {train.name(position) for position in range(len(train))} if few else None
    found = [position for position in looked if _is_named(train, others, scored.name(position))]
    rest = sorted(set(looked) - set(found))
    if rest and train.sized:
        by_size: dict[int, list[int]] = {}
        for position in even_positions(len(train), MOST_SIZES).tolist():
            by_size.setdefault(_size(train, position), []).append(position)
        found += [position for position in rest if _is_among(scored, position, train, by_size)]
    return Overlap(len(looked), len(found), shown(scored.name(min(found))) if found else "")


def _is_named(images: ImageSource, names: set[str] | None, name: str) -> bool:
    """Return whether a source has an image of this name; the paths of an index are searched as they lie in memory."""
    if not isinstance(images, ImageIndex):
        return names is not None and name in names
    path, place = os.fsencode(name), -1
    while (place := images.block.find(path, place + 1)) >= 0:
        number = int(images.ends.searchsorted(place))
        if number < len(images) and images.ends[number] == place and images.ends[number + 1] == place + len(path):
            return True
    return False


def _size(images: ImageSource, position: int) -> int:
    try:
        return images.size(position)
    except OSError:
        return -1


def _is_among(scored: ImageSource, position: int, train: ImageSource, by_size: dict[int, list[int]]) -> bool:
    size = _size(scored, position)
    same = by_size.get(size, []) if size > 0 else []
    try:
        own = scored.read_bytes(position, MOST_COMPARED)[:MOST_COMPARED] if same else b""
        return any(train.read_bytes(other, MOST_COMPARED)[:MOST_COMPARED] == own for other in same)
    except OSError:
        return False


def tell_overlap(train: ImageSource, scored: ImageSource) -> None:
    """Warn where images to score are images to learn from, with labels."""
    shared = shared_images(train, scored)
    if shared.found:
        logging.warn(
            f"{shared} (the same content), such as {shared.first}: what is measured on them says nothing about new"
            " images"
        )


def tell_pretraining_overlap(train: ImageSource, scored: ImageSource, option: str) -> None:
    """Warn where a pre-training learns, without labels, from images that it is then scored on."""
    shared = shared_images(train, scored)
    if shared.found:
        logging.warn(
            f"--data.train: {shared.found} of the {shared.looked} validation images of {option} looked at are among"
            f" its images, such as {shared.first}: scores on images that were seen, even without labels, are too good;"
            " leave them out with --monitor.knn-exclude true, or name the training images alone"
        )


def tell_parts(sources: Sequence[str]) -> None:
    """Warn where a folder to pre-train on holds train/ and folders for validation: all of them are trained on."""
    for source in sources:
        try:
            folders = subfolders(Path(source)) if os.path.isdir(source) else []
        except UsageError:
            continue
        parts = {NAMES[folder.name.lower()]: folder.name for folder in folders if folder.name.lower() in NAMES}
        others = [f"{name}/" for part, name in parts.items() if part != "train"]
        if "train" in parts and others:
            logging.warn(
                f"--data.train {shown(source)} holds {' and '.join(others)} beside {parts['train']}/, and their images"
                f" are trained on as well: to keep them for validation, give"
                f" {shown(os.path.join(source, parts['train']))}"
            )
