"""Labelled images in folders: train/<class>/ and val/<class>/ (or valid, or test), images at any depth below."""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from mst.data.files.kinds import EXTENSIONS, SYSTEM, extension
from mst.data.files.passed import FIRST, Kind, Passed, PassedOver
from mst.data.sources import ImageIndex, ImageSource, even_positions, index_images
from mst.errors import DataError, UsageError
from mst.paths import user_path
from mst.runtime import logging
from mst.runtime.names import shown

VALIDATION_NAMES = ("val", "valid", "test")
LOOKED_AT = 64
"""Validation images that are compared with the training images of the same name."""
MOST_COMPARED = 1 << 20
"""Bytes of each that are compared."""


class LabelledImages(NamedTuple):
    """Images and their classes.

    Attributes:
        paths: n images, class by class.
        labels: position of each one's class in `LabelledFolder.classes`: int64 [n].
    """

    paths: ImageSource
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
        passed: what was found beside the classes, and in them, and not taken.

    Args:
        root: the folder.
        channels: of the images.
        strict: accept nothing that cannot be used: no dead links, no images beside the class folders.
        tell: say on stderr what was passed over, and whether validation images are training images.

    Raises:
        UsageError: `root` is no folder, or lacks train or all of val, valid and test.
        DataError: no class folders, a class without images, validation classes that training does not have, or (with
            `strict`) something that cannot be used.
    """

    def __init__(self, root: str | Path, *, channels: int = 3, strict: bool = False, tell: bool = True) -> None:
        self.root = user_path(root)
        if not _is_folder(self.root):
            state = "is a file" if self.root.exists() else "does not exist"
            raise UsageError(f"{shown(self.root)} {state}: give a folder that holds train/<class>/ and val/<class>/")
        train = _classes(_part(self.root, ("train",)))
        val = _classes(_part(self.root, VALIDATION_NAMES))
        self.classes: tuple[str, ...] = train.names
        unknown = sorted(set(val.names) - set(self.classes))
        if unknown:
            raise DataError(
                f"{shown(val.folder)} has {len(unknown)} class{'es' * (len(unknown) > 1)} that {shown(train.folder)}"
                f" lacks: {', '.join(map(shown, unknown[:5]))}{', ...' if len(unknown) > 5 else ''}"
            )
        self.train = _labelled(train, self.classes, channels)
        self.val = _labelled(val, self.classes, channels)
        inside = (*train.passed, *val.passed, *self.train.paths.passed.entries, *self.val.paths.passed.entries)
        self.passed = PassedOver.of(inside)
        if strict:
            self.passed.check()
        self._folders = train.folder, val.folder
        if tell:
            self.tell()

    def tell(self) -> None:
        """Say on stderr what was passed over, and whether validation images are training images."""
        self.passed.tell()
        _compare(*self._folders, self.val.paths)


@dataclass(frozen=True)
class _Classes:
    """The class folders in a folder.

    Attributes:
        folder: where they are.
        names: sorted.
        passed: what else is there.
    """

    folder: Path
    names: tuple[str, ...]
    passed: tuple[Passed, ...]


def _part(root: Path, names: Sequence[str]) -> Path:
    """Return the first of the named folders that is there."""
    for name in names:
        if _is_folder(root / name):
            return root / name
    inner = [folder for folder in _folders(root) if any(os.path.isdir(folder / name) for name in names)]
    hint = f"; {shown(inner[0])} has: give that folder" if inner else ""
    raise UsageError(
        f"{shown(root)} has no folder {' or '.join(names)}: train/<class>/ and val/<class>/ are expected{hint}"
    )


def _is_folder(path: Path) -> bool:
    """Return whether there is a folder.

    Raises:
        UsageError: that cannot be found out.
    """
    try:
        return stat.S_ISDIR(path.stat().st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise UsageError(f"{shown(path)} cannot be read: {reason}") from error


def _folders(root: Path) -> list[Path]:
    """Return the folders in a folder, sorted, without hidden ones and those of systems."""
    try:
        return sorted(root / name for name in os.listdir(root) if _ordinary(name) and os.path.isdir(root / name))
    except OSError as error:
        raise UsageError(f"{shown(root)} cannot be searched: {error.strerror}") from error


def _ordinary(name: str) -> bool:
    return not name.startswith(".") and os.fsencode(name).lower() not in SYSTEM


def _classes(folder: Path) -> _Classes:
    """Find the class folders; a dead link in their place, and images beside them, are counted."""
    names: list[str] = []
    beside: dict[tuple[Kind, str], list[bytes]] = {}
    try:
        entries = sorted(name for name in os.listdir(folder) if _ordinary(name))
    except OSError as error:
        raise UsageError(f"{shown(folder)} cannot be searched: {error.strerror}") from error
    for name in entries:
        path = os.fsencode(folder / name)
        try:
            os.stat(path)
        except OSError as error:
            beside.setdefault(("link", error.strerror or "unknown"), []).append(path)
            continue
        if os.path.isdir(path):
            names.append(name)
        elif extension(path) in EXTENSIONS:
            beside.setdefault(("loose", ""), []).append(path)
    passed = tuple(Passed(*key, len(paths), tuple(paths[:FIRST])) for key, paths in beside.items())
    if not names:
        found = f"; found: {'; '.join(map(str, passed))}" if passed else ""
        raise DataError(
            f"{shown(folder)} has no class folders: one folder per class is expected, with its images inside{found}"
        )
    return _Classes(folder, tuple(names), passed)


def _labelled(found: _Classes, classes: Sequence[str], channels: int) -> LabelledImages:
    """Index the classes that are there, numbered as in `classes`."""
    # names a class without images
    parts = [index_images(found.folder / name, channels=channels, tell=False) for name in found.names]
    number = {name: position for position, name in enumerate(classes)}
    numbers = torch.tensor([number[name] for name in found.names], dtype=torch.int64)
    labels = numbers.repeat_interleave(torch.tensor([len(part) for part in parts]))  # [n]
    return LabelledImages(ImageIndex.joined(parts), labels)


def _compare(train: Path, val: Path, images: ImageSource) -> None:
    """Warn where validation images lie in the training folder under the same name and with the same content."""
    looked = [Path(images.name(position)) for position in even_positions(len(images), LOOKED_AT).tolist()]
    same = [path for path in looked if same_content(path, train / os.path.relpath(path, os.path.abspath(val)))]
    if same:
        logging.warn(
            f"{len(same)} of the {len(looked)} validation images looked at are training images too (the same name and"
            f" content), such as {shown(same[0])}: what is measured on them says nothing about new images"
        )


def same_content(one: Path, other: Path) -> bool:
    """Return whether two paths are one file, or have the same size and beginning."""
    try:
        first, second = one.stat(), other.stat()
        if os.path.samestat(first, second):
            return True
        if first.st_size != second.st_size or not first.st_size:
            return False
        with one.open("rb") as left, other.open("rb") as right:
            return left.read(MOST_COMPARED) == right.read(MOST_COMPARED)
    except OSError:
        return False
