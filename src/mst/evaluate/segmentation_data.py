"""Images with a class number per pixel: from memory, or from `images/`, `masks/` and split lists.

Letters: C channels, H W pixels.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from PIL import UnidentifiedImageError
from torch import Tensor

from mst.data.decoding import decode_image
from mst.data.sources import even_positions
from mst.data.synthetic import CLASSES, SceneSet
from mst.data.value_range import BY_TYPE, Scale
from mst.errors import DataError
from mst.evaluate.content import identity_of_files, identity_of_values
from mst.runtime.identity import DataIdentity, identify, together
from mst.runtime.images import open_image, quiet_pillow
from mst.runtime.logging import warn
from mst.runtime.names import shown

Item = TypeVar("Item")
Read = TypeVar("Read")
AHEAD = 2
"""Items per thread that are read before they are needed."""
NO_CLASS = -1
"""Mask value of pixels without a class, once a mask was checked."""
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")


@dataclass(frozen=True)
class SegmentationSet:
    """Image and mask pairs that are read one at a time.

    Attributes:
        names: a path or another name for each pair.
        read: index -> (uint8 image [C, H, W], int64 mask [H, W]).
        files: image and mask of each pair, where they are files.
    """

    names: tuple[str, ...]
    read: Callable[[int], tuple[Tensor, Tensor]]
    files: tuple[tuple[Path, Path], ...] = ()

    def __len__(self) -> int:
        """Return the number of pairs."""
        return len(self.names)

    @staticmethod
    def from_tensors(images: Sequence[Tensor], masks: Sequence[Tensor]) -> SegmentationSet:
        """Return a set over uint8 images [C, H, W] and integer masks [H, W] in memory."""
        names = tuple(f"image {index}" for index in range(len(images)))
        return SegmentationSet(names, lambda index: (images[index], masks[index].long()))

    def evenly(self, limit: int | None) -> SegmentationSet:
        """Return at most `limit` of the pairs, at even distances, order kept; None = all."""
        if limit is None or limit >= len(self):
            return self
        chosen = even_positions(len(self), limit).tolist()
        return SegmentationSet(
            tuple(self.names[i] for i in chosen),
            lambda index: self.read(chosen[index]),
            tuple(self.files[i] for i in chosen if self.files),
        )

    def fingerprint(self) -> DataIdentity:
        """Return the identity of names and content; of sets in memory 64 pairs are read."""
        if self.files:
            images, masks = zip(*self.files, strict=True)
            return identity_of_files(self.names, files=[*images, *masks])
        chosen = even_positions(len(self), 64).tolist()
        return identity_of_values(self.names, (part for index in chosen for part in self.read(index)))


@dataclass(frozen=True)
class SegmentationData:
    """A training and a validation set with the same classes.

    Attributes:
        classes: names; class number = position.
        train: pairs to learn from.
        val: pairs to score.
        ignore_index: mask value without a class, or None.
    """

    classes: tuple[str, ...]
    train: SegmentationSet
    val: SegmentationSet
    ignore_index: int | None = None

    def fingerprint(self) -> DataIdentity:
        """Return the identity of both sets, their classes and the value without a class."""
        classes = identify("", [], count=0, annotations=[repr((self.classes, self.ignore_index)).encode()])
        return together("", self.train.fingerprint(), self.val.fingerprint(), classes)

    def evenly(self, train: int | None, val: int | None) -> SegmentationData:
        """Return parts of both sets, see `SegmentationSet.evenly`."""
        return replace(self, train=self.train.evenly(train), val=self.val.evenly(val))

    def checked(self, pairs: SegmentationSet, index: int) -> tuple[Tensor, Tensor]:
        """Return one image and its mask with NO_CLASS in place of the ignore index.

        Raises:
            DataError: the mask has another size than its image, or a value that is no class.
        """
        image, mask = pairs.read(index)
        name = pairs.names[index]
        if mask.shape != image.shape[-2:]:
            raise DataError(f"{name}: mask {tuple(mask.shape)} and image {tuple(image.shape[-2:])} differ")
        check_mask(mask, len(self.classes), self.ignore_index, name)
        return image, mask if self.ignore_index is None else mask.masked_fill(mask == self.ignore_index, NO_CLASS)


def check_found(data: SegmentationData, found: set[int], title: str) -> None:
    """Refuse masks from which nothing can be learnt, or by which nothing can be scored; warn of one class only.

    Args:
        data: the classes.
        found: all values of the checked masks, NO_CLASS among them.
        title: training or validation.

    Raises:
        DataError: there is one class only, or no pixel has one.
    """
    if len(data.classes) < 2:
        raise DataError(
            f"there is one class, {shown(data.classes[0])}, so every answer would be right: at least 2 are needed"
        )
    classes = sorted(found - {NO_CLASS})
    if not classes:
        raise DataError(
            f"no pixel of the {title} masks has a class, all are {data.ignore_index} (ignore_index of classes.json): "
            "there is nothing to learn from or to score"
        )
    if title == "training" and len(classes) == 1:
        warn(
            f"all pixels of the training masks are of class {shown(data.classes[classes[0]])}: no other class can be "
            "learnt"
        )


def read_ahead(read: Callable[[Item], Read], items: Iterable[Item], workers: int) -> Generator[Read, None, None]:
    """Yield `read(item)` in order; threads work on the next few meanwhile. Errors come out where their item would."""
    waiting: deque[Future[Read]] = deque()
    with ThreadPoolExecutor(workers) as pool:
        try:
            for item in items:
                waiting.append(pool.submit(read, item))
                if len(waiting) > AHEAD * workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def scene_segmentation(train: SceneSet, val: SceneSet) -> SegmentationData:
    """Return synthetic scenes with their semantic maps, drawn once into memory; class 0 is the background."""

    def pairs(scenes: SceneSet) -> SegmentationSet:
        drawn = list(scenes)
        return SegmentationSet.from_tensors(
            [torch.from_numpy(scene.image) for scene in drawn],
            [torch.from_numpy(scene.semantic_map) for scene in drawn],
        )

    return SegmentationData(("background", *CLASSES), pairs(train), pairs(val))


def segmentation_folder(root: Path, *, channels: int = 3, scale: Scale = BY_TYPE) -> SegmentationData:
    """Return the sets of a folder with `images/`, `masks/` (index PNG), `train.txt`, `val.txt` and `classes.json`.

    A list has one image name per line, with or without suffix; `classes.json` is a list of class names, or an object
    with `classes` and, where some pixels have no class, `ignore_index`.

    Raises:
        DataError: a part is missing or of another kind, a listed image or mask does not exist, or a list is empty.
    """
    for part in ("images", "masks", "train.txt", "val.txt", "classes.json"):
        if not (root / part).exists():
            raise DataError(f"{root} has no {part}: needed are images/, masks/, train.txt, val.txt and classes.json")
    classes, ignore_index = _read_classes(root / "classes.json")
    train, val = (
        _listed_set(root, root / f"{split}.txt", len(classes), ignore_index, channels=channels, scale=scale)
        for split in ("train", "val")
    )
    return SegmentationData(classes, train, val, ignore_index)


def _read_classes(path: Path) -> tuple[tuple[str, ...], int | None]:
    try:
        content = json.loads(path.read_bytes())  # UTF-8, 16 or 32, with or without a mark
        classes = content if isinstance(content, list) else content["classes"]
        ignore = None if isinstance(content, list) else content.get("ignore_index")
        if not isinstance(classes, list) or not classes or not all(isinstance(name, str) for name in classes):
            raise ValueError("no class names")
        return tuple(classes), None if ignore is None else int(ignore)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f'{path}: expected ["name", ...] or {{"classes": [...], "ignore_index": n}} ({error})'
        ) from error


def _listed_set(
    root: Path, listing: Path, num_classes: int, ignore_index: int | None, *, channels: int, scale: Scale
) -> SegmentationSet:
    try:
        names = [line.strip() for line in listing.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, ValueError) as error:
        raise DataError(f"{listing} cannot be read as a list of image names ({error})") from error
    if not names:
        raise DataError(f"{listing} names no image")
    images = [_find(root / "images", name, IMAGE_SUFFIXES, listing) for name in names]
    masks = [_find(root / "masks", name, (".png",), listing) for name in names]

    def read(index: int) -> tuple[Tensor, Tensor]:
        image = decode_image(images[index], channels=channels, scale=scale)
        return image, read_mask(masks[index], (image.shape[1], image.shape[2]), num_classes, ignore_index)

    return SegmentationSet(tuple(map(str, images)), read, tuple(zip(images, masks, strict=True)))


def _find(folder: Path, name: str, suffixes: Sequence[str], listing: Path) -> Path:
    stem = folder / name
    for candidate in (stem, *(folder / f"{name}{suffix}" for suffix in suffixes)):
        if candidate.suffix.lower() in suffixes and candidate.is_file():
            return candidate
    for suffix in suffixes:
        if stem.with_suffix(suffix).is_file():
            return stem.with_suffix(suffix)
    raise DataError(f"{listing} names {name}, but there is no {stem}[{'|'.join(suffixes)}]")


def read_mask(path: Path, size: tuple[int, int], num_classes: int, ignore_index: int | None) -> Tensor:
    """Return a mask file as class numbers, int64 [H, W].

    Raises:
        DataError: unreadable, of another size than its image, or with a value that is no class.
    """
    mask = read_values(path, size)
    check_mask(mask, num_classes, ignore_index, str(path))
    return mask


def read_values(path: Path, size: tuple[int, int]) -> Tensor:
    """Return the values of a 1-, 8- or 16-bit image, int64 [H, W].

    Raises:
        DataError: unreadable, of another kind, or of another size than its image.
    """
    try:
        with quiet_pillow, open_image(path) as file:
            values = np.asarray(file)
            values = values.astype(np.uint8) if file.mode == "1" else values
    except (OSError, UnidentifiedImageError, SyntaxError, ValueError) as error:
        raise DataError(f"{path}: cannot be read as a mask ({error})") from error
    if values.ndim != 2 or values.dtype.kind not in "ui":
        raise DataError(f"{path}: a mask has 1, 8 or 16 bits of class numbers, this one has shape {values.shape}")
    if values.shape != size:
        raise DataError(
            f"{path}: mask is {values.shape[0]}x{values.shape[1]}, its image is {size[0]}x{size[1]} (H x W)"
        )
    return torch.from_numpy(values.astype(np.int64))


def check_mask(mask: Tensor, num_classes: int, ignore_index: int | None, name: str) -> None:
    """Refuse a mask with a value that is neither a class nor `ignore_index`.

    Raises:
        DataError: naming the value.
    """
    wrong = (mask < 0) | (mask >= num_classes)
    if ignore_index is not None:
        wrong &= mask != ignore_index
    if bool(wrong.any()):
        value = int(mask[wrong][0])
        raise DataError(f"{name}: {value} is no class of 0..{num_classes - 1} and not ignore_index {ignore_index}")
