"""Which part (train, val, test) and which class an image belongs to, and which folders hold masks, told from names."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from mst.data.sources import ImageSource
from mst.data.sources.huggingface import SPLIT
from mst.errors import DataError
from mst.runtime.names import shown

PART = re.compile(r"(train|training|val|valid|validation|dev|test|testing)(?:[-_ ]?\d{2,8})?", re.I)
SHARD = re.compile(r"(.*?)([^/]*)\.(?:tar|parquet|arrow)[:\[](.*)", re.S)
"""Name of an image in a shard: folder, stem of the shard, member or row."""
SAME = {"training": "train", "valid": "val", "validation": "val", "dev": "val", "testing": "test"}
KINDS = frozenset({"images", "image", "imgs", "img", "jpegimages", "pictures", "photos", "frames", "data", "raw"})
"""Names of folders that are no classes, where all are called so."""
MASKS = frozenset(
    {"masks", "mask", "annotations", "annotation", "labels", "label", "segmentationclass", "segmentationobject"}
    | {"gt", "groundtruth", "ground_truth", "gtfine", "gtcoarse", "trainannot", "valannot", "testannot", "depth"}
)
"""Names of folders whose images are annotations of others."""
LONGEST_LIST = 1 << 28
"""Bytes of a list or COCO file that is read to see which images are in which part."""


@dataclass(frozen=True)
class Places:
    """Where images belong.

    Attributes:
        parts: names of the parts, "" for images of none.
        part: position in `parts` of each image, int16 [n].
        classes: names of the classes; empty where the folders are no classes.
        label: position in `classes` of each image, -1 = of none; int32 [n].
        masks: which images lie in folders of annotations, bool [n].
        mask_folders: those folders.
        image_folder: the folder to train on, where it is another than was looked at: that of the part train, or that
            of all images but masks; else "".
    """

    parts: tuple[str, ...]
    part: npt.NDArray[np.int16]
    classes: tuple[str, ...]
    label: npt.NDArray[np.int32]
    masks: npt.NDArray[np.bool_]
    mask_folders: tuple[str, ...]
    image_folder: str = ""

    def with_parts(self, train: int) -> Places:
        """Return the same with the first images as training images, and the others as validation images."""
        part = np.ones(len(self.part), np.int16)
        part[:train] = 0
        return replace(self, parts=("train", "val"), part=part)

    def with_labels(self, images: ImageSource) -> Places:
        """Return the same with the classes that the source itself knows, where folders are no classes."""
        if self.classes:
            return self
        try:
            labels = images.labels()
        except DataError:  # some have a class and others do not
            return self
        if labels is None:
            return self
        numbers = labels.numbers[: len(self.part)].astype(np.int32)
        return replace(self, classes=tuple(map(shown, labels.classes)), label=numbers)


class PlaceNotes:
    """Collects the names of images, folder by folder, and says at the end where they belong."""

    def __init__(self) -> None:
        self._folders: dict[str, int] = {}
        self._shards: dict[str, str] = {}
        self._of: list[int] = []
        self._stems: list[int] = []

    def add(self, name: str) -> None:
        """Note the next image; a shard that is called after a part (`train-00001.tar`) counts as a folder."""
        shard = SHARD.fullmatch(name)
        match = None if shard is None else PART.fullmatch(shard[2]) or SPLIT.fullmatch(shard[2])
        if shard is not None:
            ending = name[len(shard[1]) + len(shard[2]) :].partition(":")[0].partition("[")[0]
            name = f"{shard[1]}{match[1]}/{shard[3]}" if match else f"{shard[1]}{shard[3]}"
            if match:
                self._shards[name.rpartition("/")[0]] = f"{shard[1]}{shard[2][: match.end(1)]}*{ending}"
        folder, _, base = name.rpartition("/")
        self._of.append(self._folders.setdefault(folder, len(self._folders)))
        self._stems.append(hash(base.rpartition(".")[0] or base))

    def places(self, roots: Sequence[Path]) -> Places:
        """Return where the images belong.

        Args:
            roots: the folders that were looked at; lists `train.txt`, `val.txt` and COCO files `instances_train.json`
                in one say which image is in which part where the folders' names do not.
        """
        below = _below_common(list(self._folders))
        of = np.array(self._of, np.int64)
        masks = [any(word.lower() in MASKS for word in words) for words in below]
        if all(masks):  # then they are what was asked for
            masks = [False] * len(masks)
        parts, rest = _parts(below, masks)
        names = tuple(dict.fromkeys(parts))
        part = np.array([names.index(found) for found in parts], np.int16)[of] if len(of) else np.zeros(0, np.int16)
        if not any(names):
            names, part = self._listed(roots, names or ("",), part)
        classes, label = _classes(rest, masks)
        folders = tuple(shown(folder) for folder, mask in zip(self._folders, masks, strict=True) if mask)
        labels = np.array(label, np.int32)[of] if len(of) else np.zeros(0, np.int32)
        hidden = np.array(masks, bool)[of] if len(of) else np.zeros(0, bool)
        return Places(names, part, classes, labels, hidden, folders, self._image_folder(parts, masks))

    def _image_folder(self, parts: list[str], masks: list[bool]) -> str:
        """Return the folder to train on, see `Places`."""
        words = [folder.split("/") for folder in self._folders]
        kept = [one for one, part, mask in zip(words, parts, masks, strict=True) if part == "train" and not mask]
        kept = kept or [one for one, mask in zip(words, masks, strict=True) if not mask]
        if len(kept) in {0, len(words)}:
            return ""
        folder = _shared(kept)
        patterns = {self._shards.get("/".join(one), "") for one in kept}
        if len(patterns) == 1 and (pattern := patterns.pop()):
            return shown(pattern)
        inside = sum(one[: len(folder)] == folder for one in words)
        return shown("/".join(folder)) if inside == len(kept) else ""

    def _listed(
        self, roots: Sequence[Path], names: tuple[str, ...], part: npt.NDArray[np.int16]
    ) -> tuple[tuple[str, ...], npt.NDArray[np.int16]]:
        """Return the parts that lists in the folders give."""
        listed = _lists(roots[0]) if len(roots) == 1 else {}
        if len(listed) < 2:
            return names, part
        known = {stem: number for number, stems in enumerate(listed.values(), 1) for stem in stems}
        found = np.array([known.get(stem, 0) for stem in self._stems], np.int16)
        return ("", *listed), found


def _below_common(folders: list[str]) -> list[list[str]]:
    """Return the words of each folder's path below the folder that all lie in."""
    words = [[word for word in folder.split("/") if word] for folder in folders]
    if not words:
        return []
    shared = _shared(words)
    keep = next((place for place, word in enumerate(shared) if PART.fullmatch(word)), len(shared))
    return [found[min(keep, len(shared)) :] for found in words]


def _shared(lists: list[list[str]]) -> list[str]:
    """Return the words with which all lists begin."""
    first, last = min(lists), max(lists)
    end = next((at for at, (one, other) in enumerate(zip(first, last, strict=False)) if one != other), None)
    return first[:end] if end is not None else min(first, last, key=len)


def _parts(below: list[list[str]], masks: list[bool]) -> tuple[list[str], list[list[str]]]:
    """Return the part of each folder, "" = none, and the words that are left without it."""
    parts: list[str] = []
    rest: list[list[str]] = []
    for words in below:
        place = next((at for at, word in enumerate(words) if PART.fullmatch(word)), None)
        if place is None:
            parts.append("")
            rest.append(words)
            continue
        match = PART.fullmatch(words[place])
        name = match[1].lower() if match else ""
        parts.append(SAME.get(name, name))
        rest.append(words[:place] + words[place + 1 :])
    if len({part for part, mask in zip(parts, masks, strict=True) if not mask}) < 2:
        return [""] * len(parts), rest
    return parts, rest


def _classes(rest: list[list[str]], masks: list[bool]) -> tuple[tuple[str, ...], list[int]]:
    """Return the classes that the first words name, and the class of each folder; none where they are no classes."""
    shared = len(_shared([words for words, mask in zip(rest, masks, strict=True) if not mask]))
    named = ["" if mask or len(words) <= shared else words[shared] for words, mask in zip(rest, masks, strict=True)]
    found = sorted(set(named) - {""})
    wanted = [name for name, mask in zip(named, masks, strict=True) if not mask]
    if len(found) < 2 or "" in wanted or all(name.lower() in KINDS for name in found):
        return (), [-1] * len(rest)
    number = {name: place for place, name in enumerate(found)}
    return tuple(map(shown, found)), [number.get(name, -1) for name in named]


def _lists(root: Path) -> dict[str, set[int]]:
    """Return the hashes of the stems that each part's list or COCO file names."""
    listed: dict[str, set[int]] = {}
    for folder in (root, root / "annotations"):
        try:
            files = sorted(path for path in folder.iterdir() if path.suffix in {".txt", ".json"})
        except OSError:
            continue
        for path in files:
            match = PART.fullmatch(path.stem.removeprefix("instances_"))
            if match and path.is_file() and path.stat().st_size <= LONGEST_LIST:
                part = match[1].lower()
                names = _named_in(path)
                if names:
                    listed.setdefault(SAME.get(part, part), set()).update(hash(_stem(name)) for name in names)
    return listed


def _named_in(path: Path) -> list[str]:
    """Return the images that a list or a COCO file names; none where it is neither."""
    try:
        text = path.read_text(encoding="utf-8", errors="surrogateescape")
        if path.suffix == ".txt":
            return [line.split()[0] for line in text.splitlines() if line.strip() and not line.startswith("#")]
        images = json.loads(text)["images"]
        return [str(image["file_name"]) for image in images]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return []


def _stem(name: str) -> str:
    base = name.rpartition("/")[2]
    stem, dot, ending = base.rpartition(".")
    return stem if dot and ending.lower() in {"jpg", "jpeg", "png", "bmp", "webp", "tif", "tiff"} else base


def counts(labels: npt.NDArray[np.int32], classes: Sequence[str]) -> dict[str, int]:
    """Return how many images each class has, most first."""
    found = Counter(labels[labels >= 0].tolist())
    return {classes[number]: count for number, count in found.most_common()}
