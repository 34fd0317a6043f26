"""Labelled images in folders: train/<class>/ and val/<class>/ (or valid, or test), images at any depth below."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from mst.data.sources import ImageIndex, even_positions, index_images
from mst.errors import DataError, UsageError

VALIDATION_NAMES = ("val", "valid", "test")


class LabelledImages(NamedTuple):
    """Images and their classes.

    Attributes:
        paths: n image files, class by class.
        labels: position of each one's class in `LabelledFolder.classes`: int64 [n].
    """

    paths: ImageIndex
    labels: Tensor

    def evenly(self, limit: int | None) -> LabelledImages:
        """Return at most `limit` of the images, drawn evenly, hence from all classes alike; None = all."""
        if limit is None or limit >= len(self.paths):
            return self
        keep = even_positions(len(self.paths), limit)
        return LabelledImages(self.paths.evenly(limit), self.labels[torch.from_numpy(keep)])


class LabelledFolder:
    """A training and a validation set with the same classes.

    Attributes:
        root: the folder.
        classes: names of the training classes, sorted.
        train: the training images.
        val: the validation images; may lack some classes.

    Raises:
        UsageError: `root` is no folder, or lacks train or all of val, valid and test.
        DataError: no class folders, a class without images, or validation classes that training does not have.
    """

    def __init__(self, root: str | Path, *, channels: int = 3) -> None:
        self.root = Path(root).expanduser()
        if not self.root.is_dir():
            state = "is a file" if self.root.exists() else "does not exist"
            raise UsageError(f"{self.root} {state}: give a folder that holds train/<class>/ and val/<class>/")
        train = _part(self.root, ("train",))
        val = _part(self.root, VALIDATION_NAMES)
        self.classes: tuple[str, ...] = _classes(train)
        unknown = sorted(set(_classes(val)) - set(self.classes))
        if unknown:
            raise DataError(
                f"{val} has {len(unknown)} class{'es' * (len(unknown) > 1)} that {train} lacks:"
                f" {', '.join(unknown[:5])}{', ...' if len(unknown) > 5 else ''}"
            )
        self.train = _labelled(train, self.classes, self.classes, channels)
        self.val = _labelled(val, _classes(val), self.classes, channels)


def _part(root: Path, names: Sequence[str]) -> Path:
    """Return the first of the named folders that is there."""
    for name in names:
        if (root / name).is_dir():
            return root / name
    raise UsageError(f"{root} has no folder {' or '.join(names)}: train/<class>/ and val/<class>/ are expected")


def _classes(folder: Path) -> tuple[str, ...]:
    """Return the sorted names of the class folders."""
    names = sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    if not names:
        raise DataError(f"{folder} has no class folders: one folder per class is expected, with its images inside")
    return tuple(names)


def _labelled(folder: Path, present: Sequence[str], classes: Sequence[str], channels: int) -> LabelledImages:
    """Index the classes that are `present`, numbered as in `classes`."""
    parts = [index_images(folder / name, channels=channels) for name in present]  # names a class without images
    numbers = torch.tensor([classes.index(name) for name in present], dtype=torch.int64)
    labels = numbers.repeat_interleave(torch.tensor([len(part) for part in parts]))  # [n]
    return LabelledImages(ImageIndex.of(path for part in parts for path in part), labels)
