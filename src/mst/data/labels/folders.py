"""Labels by folder: train/<class>/ and val/<class>/ under any of their usual names, or <class>/ alone."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from mst.data.files.kinds import EXTENSIONS, SYSTEM, extension
from mst.data.files.passed import FIRST, Kind, Passed, PassedOver
from mst.data.labels.record import NAMES, FoundLabels, LabelledImages, LabelOptions, Part, scored_part
from mst.data.sources import ImageIndex, index_images
from mst.errors import DataError, UsageError
from mst.paths import like_named
from mst.runtime.names import shown


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


def labelled_by_folders(root: Path, options: LabelOptions, *, channels: int) -> FoundLabels:
    """Return the images of a folder of class folders, or of folders for training and validation that hold such.

    Only the training images and those to be scored are looked for.

    Raises:
        UsageError: no folder, or one that can be read in two ways.
        DataError: no class folders, a class without images, or classes to score that training does not have.
    """
    if not is_folder(root):
        state = f"{shown(root)} is a file" if root.exists() else f"{shown(root)} does not exist{like_named(root)}"
        raise UsageError(
            f"{state}: give a folder that holds train/<class>/ and val/<class>/ or <class>/, or a table "
            "(.csv, .tsv) of paths and labels"
        )
    folders = _parts(root)
    if not folders:
        return _unsplit(root, _classes(root), channels)
    found: dict[Part, _Classes] = {"train": _classes(folders["train"])}
    part = scored_part(list(folders), options.split, shown(root))
    if part is None:
        return _unsplit(root, found["train"], channels)
    found[part] = _classes(folders[part])
    classes = found["train"].names
    unknown = sorted(set(found[part].names) - set(classes))
    if unknown:
        raise DataError(
            f"{shown(folders[part])} has {len(unknown)} class{'es' * (len(unknown) > 1)} that"
            f" {shown(folders['train'])} lacks: {', '.join(map(shown, unknown[:5]))}{', ...' * (len(unknown) > 5)}"
        )
    parts = {name: _labelled(entry, classes, channels) for name, entry in found.items()}
    passed = (*(entry for one in found.values() for entry in one.passed), *_passed(parts.values()))
    titles = {name: shown(entry.folder) for name, entry in found.items()}
    return FoundLabels(shown(root), classes, parts, "folders", PassedOver.of(passed), titles)


def _unsplit(root: Path, found: _Classes, channels: int) -> FoundLabels:
    images = _labelled(found, found.names, channels)
    passed = PassedOver.of((*found.passed, *_passed([images])))
    return FoundLabels(shown(root), found.names, {"train": images}, "", passed, {"train": shown(found.folder)})


def _passed(parts: Iterable[LabelledImages]) -> list[Passed]:
    return [entry for part in parts for entry in part.paths.passed.entries]


def _parts(root: Path) -> dict[Part, Path]:
    """Return the folders of a folder that are named as parts are; none where it holds class folders.

    Raises:
        UsageError: it holds no training part but others, two folders for one part, or one folder that holds all.
    """
    found: dict[Part, Path] = {}
    folders = subfolders(root)
    for folder in folders:
        part = NAMES.get(folder.name.lower())
        if part is None:
            continue
        if part in found:
            raise UsageError(f"{shown(root)} holds {found[part].name}/ and {folder.name}/: keep one of them")
        found[part] = folder
    if found and "train" not in found:
        others = ", ".join(f"{folder.name}/" for folder in found.values())
        raise UsageError(
            f"{shown(root)} has no folder train beside {others}: train/<class>/ and val/<class>/ are expected, or"
            " class folders with other names than these"
        )
    inner = [folder for folder in folders if any(is_folder(folder / name) for name in ("train", "training"))]
    if not found and inner:
        raise UsageError(f"{shown(root)} has no folder train, but {shown(inner[0])} has: give that folder")
    return found


def is_folder(path: Path) -> bool:
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


def subfolders(root: Path) -> list[Path]:
    """Return the folders in a folder, sorted, without hidden ones and those of systems."""
    return [root / name for name in _entries(root) if _is_folder_or_part(root / name)]


def _is_folder_or_part(path: Path) -> bool:
    """Return whether there is a folder; a link that leads in a circle is none, and refused if named as a part."""
    return is_folder(path) if NAMES.get(path.name.lower()) else os.path.isdir(path)


def _entries(folder: Path) -> list[str]:
    try:
        return sorted(name for name in os.listdir(folder) if _ordinary(name))
    except OSError as error:
        raise UsageError(f"{shown(folder)} cannot be searched: {error.strerror}") from error


def _ordinary(name: str) -> bool:
    return not name.startswith(".") and os.fsencode(name).lower() not in SYSTEM


def _classes(folder: Path) -> _Classes:
    """Find the class folders; a dead link in their place, and images beside them, are counted."""
    names: list[str] = []
    beside: dict[tuple[Kind, str], list[bytes]] = {}
    for name in _entries(folder):
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
            f"{shown(folder)} has no class folders: one folder per class is expected, with its images inside, or a"
            f" table of paths and labels (--labels FILE.csv){found}"
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
