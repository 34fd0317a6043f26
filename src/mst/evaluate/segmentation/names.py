"""Which image and which mask an entry of a split list means, in the ways that people and tools name them."""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from mst.data.files.kinds import EXTENSIONS, extension
from mst.data.files.lists import text_lines
from mst.errors import DataError, UsageError
from mst.runtime.names import shown

MASK_EXTENSIONS = ("png", "tif", "tiff", "bmp", "gif", "npy")
"""Extensions of masks. JPEGs are searched for as well, so that they can be refused by name."""
MASK_WORDS = re.compile(
    r"[-_. ](masks?|gt|gtfine_labelids|labels?|labelids|labeltrainids|trainids|l|seg|segmentation|annotation)$", re.I
)
"""What tools append to an image's name to name its mask (`_L`: CamVid; `_labelIds`: Cityscapes)."""


class Pair(NamedTuple):
    """An image and its mask."""

    image: Path
    mask: Path


class FileIndex:
    """The files below a folder, by name without extension.

    Args:
        folder: searched at any depth.
        extensions: of the files, lower case, without a dot.
    """

    def __init__(self, folder: Path, extensions: Sequence[str]) -> None:
        self.folder = folder
        self.by_place: dict[str, list[Path]] = defaultdict(list)
        self.by_stem: dict[str, list[Path]] = defaultdict(list)
        wanted = {name.encode() for name in extensions}
        for base, folders, names in os.walk(folder, followlinks=True):
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            for name in sorted(names):
                if not name.startswith(".") and extension(os.fsencode(name)) in wanted:
                    path = Path(base, name)
                    self.by_place[str(path.relative_to(folder).with_suffix(""))].append(path)
                    self.by_stem[path.stem].append(path)

    @cached_property
    def by_image(self) -> dict[str, list[Path]]:
        """Name of an image -> masks named like it with a tool's word appended."""
        found: dict[str, list[Path]] = defaultdict(list)
        for stem, paths in self.by_stem.items():
            plain = MASK_WORDS.sub("", stem)
            if plain != stem:
                found[plain] += paths
        return found

    def named(self, name: str) -> list[Path]:
        """Return the files that a name may mean; it may lack its suffix and leading folders."""
        for reading in (name, _without_suffix(name)):
            parts = [part for part in reading.split("/") if part not in {"", "."}]
            for start in range(len(parts)):
                if found := self.by_place.get("/".join(parts[start:])):
                    return _of_suffix(found, name)
            if len(parts) == 1 and (found := self.by_stem.get(parts[0])):
                return _of_suffix(found, name)
        return []


def read_pairs_of(root: Path, listing: Path, images: FileIndex, masks: FileIndex) -> tuple[list[Pair], list[str]]:
    """Return the pairs that a list names, and a line for each entry whose image or mask is missing.

    A line is a name with or without suffix or folders, quoted or not, or an image and its mask side by side.

    Raises:
        DataError: the list is no text or empty, none of its entries is found, or one has two candidates.
    """
    try:
        lines = [os.fsdecode(line).strip() for line in text_lines(listing)]
    except UsageError as error:
        raise DataError(f"{shown(listing)} cannot be read as a list of image names ({error})") from error
    pairs: list[Pair] = []
    missing: list[str] = []
    for line in filter(None, lines):
        try:
            pairs.append(_pair(root, listing, line, images, masks))
        except FileNotFoundError as problem:
            if not line.startswith("#"):
                missing.append(str(problem))
    if not pairs:
        raise DataError(missing[0] if missing else f"{shown(listing)} names no image")
    _check_shared(pairs)
    return pairs, missing


def _pair(root: Path, listing: Path, line: str, images: FileIndex, masks: FileIndex) -> Pair:
    """Return what a line means.

    Raises:
        FileNotFoundError: the image or the mask is not there.
        DataError: there are two.
    """
    for parts in _readings(line):
        image = _single(_files(root, parts[0], images), parts[0], listing)
        if image is None:
            continue
        found = _files(root, parts[1], masks) if len(parts) == 2 else _masks_of(image, parts[0], images, masks)
        mask = _single(found, parts[-1], listing)
        if mask is None:
            what = "[.png|.tif|.npy|...]" if len(parts) == 1 else ""
            raise FileNotFoundError(
                f"{shown(listing)} names {shown(line)}, but there is no "
                f"{shown(masks.folder / _without_suffix(parts[-1]) if what else parts[-1])}{what}"
            )
        return Pair(image, mask)
    expected = shown(images.folder / next(iter(_readings(line)))[0])
    raise FileNotFoundError(f"{shown(listing)} names {shown(line)}, but there is no {expected}[.jpg|.png|...]")


def _readings(line: str) -> Iterator[tuple[str, ...]]:
    """Yield the names in a line, one or two, in each way that it may be read; the most literal way first."""
    texts = [line] + ([line[1:-1]] if len(line) > 1 and line[0] == line[-1] and line[0] in "\"'" else [])
    for text in texts:
        yield (text,)
        if "\\" in text:
            yield (text.replace("\\", "/"),)
    for pattern in (r"\t+", r"\s*[,;]\s*", r"\s+"):
        parts = [part.strip("\"' ").replace("\\", "/") for part in re.split(pattern, line)]
        if len(parts) == 2 and all(parts):
            yield tuple(parts)


def _files(root: Path, name: str, index: FileIndex) -> list[Path]:
    """Return the files that a name means: the path itself, else those found by search."""
    for base in (index.folder, root):
        if (base / name).is_file():
            return [base / name]
    return index.named(name)


def _masks_of(image: Path, name: str, images: FileIndex, masks: FileIndex) -> list[Path]:
    """Return the masks of an image: at the same place, else of the same name, else with a tool's word appended."""
    places = [_without_suffix(name)]
    if image.is_relative_to(images.folder):
        places.insert(0, str(image.relative_to(images.folder).with_suffix("")))
    for place in places:
        if found := masks.by_place.get(place):
            return found + _worded(image.stem, masks, images, place)
    if found := _worded(image.stem, masks, images, places[0]):
        return found
    if found := masks.by_stem.get(image.stem):
        return found
    return _worded(image.stem, masks, images, None)


def _worded(stem: str, masks: FileIndex, images: FileIndex, place: str | None) -> list[Path]:
    """Return masks named like an image with a word appended, without those that belong to other images."""
    found = []
    for candidate in masks.by_image.get(stem, []):
        own = str(candidate.relative_to(masks.folder).with_suffix(""))
        beside = place is None or os.path.dirname(own) == os.path.dirname(place)
        if beside and candidate.stem not in images.by_stem:
            found.append(candidate)
    return found


def _single(found: list[Path], name: str, listing: Path) -> Path | None:
    if len(found) > 1:
        raise DataError(
            f"{shown(listing)} names {shown(name)}, which may be {shown(found[0])} or {shown(found[1])}: "
            "list it with its suffix (and its mask beside it), or remove one"
        )
    return found[0] if found else None


def _without_suffix(name: str) -> str:
    known = extension(os.fsencode(name))
    return name.rpartition(".")[0] if known in EXTENSIONS or known == b"npy" else name


def _of_suffix(found: list[Path], name: str) -> list[Path]:
    """Return those files whose suffix is the name's, ignoring case; if there are none, all."""
    suffix = extension(os.fsencode(name))
    return [path for path in found if extension(os.fsencode(path.name)) == suffix] or found


def _check_shared(pairs: Sequence[Pair]) -> None:
    """Refuse a list in which two images share a mask."""
    owner: dict[Path, Path] = {}
    for image, mask in pairs:
        first = owner.setdefault(mask, image)
        if first != image:
            raise DataError(
                f"{shown(mask)} would be the mask of {shown(first)} and of {shown(image)}: "
                "put masks in the same sub-folders as their images, or list image and mask side by side"
            )
