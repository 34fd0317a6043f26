"""Images with a class number per pixel, read one at a time, and what is checked of them.

Letters: C channels, H W pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from mst.data.decoding import read_image
from mst.data.sources import ImageSource, even_positions
from mst.data.sources.arrays import MemoryImages
from mst.data.synthetic.scenes import CLASSES, SceneSet
from mst.data.value_range import BY_TYPE, Scale
from mst.errors import DataError
from mst.evaluate.common.content import identity_of_files
from mst.evaluate.segmentation.mask_files import check_mask
from mst.runtime.identity import DataIdentity, annotated, identify, together
from mst.runtime.logging import warn
from mst.runtime.names import shown

Item = TypeVar("Item")
NO_CLASS = -1
"""Value of pixels without a class in a checked mask."""


@dataclass(frozen=True)
class SegmentationSet:
    """Images of any source, and a mask for each.

    Attributes:
        images: where their bytes are.
        mask: (index, (H, W) of its image) -> classes of its pixels, int64 [H, W].
        channels: C.
        scale: how values that are not stored in 8 bits become such.
        mask_files: of the images, where they are files.
        missing: a line for each listed pair that does not exist.
    """

    images: ImageSource
    mask: Callable[[int, tuple[int, int]], Tensor]
    channels: int = 3
    scale: Scale = BY_TYPE
    mask_files: tuple[Path, ...] = ()
    missing: tuple[str, ...] = ()

    def __len__(self) -> int:
        """Return the number of pairs."""
        return len(self.images)

    @staticmethod
    def from_tensors(images: Sequence[Tensor], masks: Sequence[Tensor]) -> SegmentationSet:
        """Return a set over uint8 images [C, H, W] and integer masks [H, W] in memory."""
        channels = images[0].shape[0] if len(images) else 3
        return SegmentationSet(MemoryImages.of_tensors(images), lambda index, size: masks[index].long(), channels)

    @property
    def files(self) -> tuple[tuple[Path, Path], ...]:
        """Image and mask of each pair, where they are files."""
        return tuple(zip(self.images.files(), self.mask_files, strict=True)) if self.mask_files else ()

    def name(self, index: int) -> str:
        """Return what messages call a pair."""
        return self.images.name(index)

    def read(self, index: int) -> tuple[Tensor, Tensor]:
        """Return an image, uint8 [C, H, W], and its mask, int64 [H, W].

        Raises:
            DataError: one of them cannot be read.
        """
        image = read_image(self.images, index, channels=self.channels, scale=self.scale)
        return image, self.mask(index, (image.shape[1], image.shape[2]))

    def evenly(self, limit: int | None) -> SegmentationSet:
        """Return at most `limit` of the pairs, at even distances, order kept; None = all."""
        if limit is None or limit >= len(self):
            return self
        return self.only(even_positions(len(self), limit).tolist())

    def only(self, chosen: Sequence[int]) -> SegmentationSet:
        """Return the pairs at these positions."""
        return replace(
            self,
            images=self.images.only(np.asarray(chosen, dtype=np.int64)),
            mask=lambda index, size: self.mask(chosen[index], size),
            mask_files=tuple(self.mask_files[i] for i in chosen if self.mask_files),
        )

    def fingerprint(self) -> DataIdentity:
        """Return the identity of names and content; where masks are no files, 64 of them are read."""
        if self.mask_files:
            names = [self.name(index) for index in range(len(self))]
            return identity_of_files(names, files=[*self.images.files(), *self.mask_files])
        chosen = even_positions(len(self), 64).tolist()
        return annotated(self.images.fingerprint(), (self.read(index)[1].numpy().tobytes() for index in chosen))


@dataclass(frozen=True)
class SegmentationData:
    """A training and a validation set with the same classes.

    Attributes:
        classes: names; class number = position.
        train: pairs to learn from.
        val: pairs to score.
        ignore_index: mask value without a class, or None.
        meaning: what else decides about the classes of pixels: colours, and which way up masks are.
    """

    classes: tuple[str, ...]
    train: SegmentationSet
    val: SegmentationSet
    ignore_index: int | None = None
    meaning: tuple[str, ...] = ()

    def fingerprint(self) -> DataIdentity:
        """Return the identity of both sets, their classes and the value without a class."""
        said = [repr((self.classes, self.ignore_index)), *self.meaning]
        classes = identify("", [], count=0, annotations=[text.encode("utf-8", "surrogatepass") for text in said])
        return together("", self.train.fingerprint(), self.val.fingerprint(), classes)

    def with_scale(self, scale: Scale) -> SegmentationData:
        """Return the same sets, read by another scale."""
        return replace(self, train=replace(self.train, scale=scale), val=replace(self.val, scale=scale))

    def evenly(self, train: int | None, val: int | None) -> SegmentationData:
        """Return parts of both sets, see `SegmentationSet.evenly`."""
        return replace(self, train=self.train.evenly(train), val=self.val.evenly(val))

    def checked(self, pairs: SegmentationSet, index: int) -> tuple[Tensor, Tensor]:
        """Return one image and its mask with NO_CLASS in place of the ignore index.

        Raises:
            DataError: the mask has another size than its image, or a value that is no class.
        """
        image, mask = pairs.read(index)
        name = pairs.name(index)
        if mask.shape != image.shape[-2:]:
            raise DataError(f"{name}: mask {tuple(mask.shape)} and image {tuple(image.shape[-2:])} differ")
        check_mask(mask, len(self.classes), self.ignore_index, name)
        return image, mask if self.ignore_index is None else mask.masked_fill(mask == self.ignore_index, NO_CLASS)


def even_pairs(pairs: Sequence[Item], limit: int | None) -> Sequence[Item]:
    """Return at most `limit` items at even distances, order kept; None = all."""
    if limit is None or limit >= len(pairs):
        return pairs
    return [pairs[position] for position in even_positions(len(pairs), limit).tolist()]


def check_found(data: SegmentationData, found: set[int], title: str) -> None:
    """Refuse masks that hold nothing to learn from or to score; warn if only one class occurs.

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


def scene_segmentation(train: SceneSet, val: SceneSet) -> SegmentationData:
    """Return synthetic scenes with their semantic maps, drawn once into memory; class 0 is the background."""

    def pairs(scenes: SceneSet) -> SegmentationSet:
        drawn = list(scenes)
        return SegmentationSet.from_tensors(
            [torch.from_numpy(scene.image) for scene in drawn],
            [torch.from_numpy(scene.semantic_map) for scene in drawn],
        )

    return SegmentationData(("background", *CLASSES), pairs(train), pairs(val))
