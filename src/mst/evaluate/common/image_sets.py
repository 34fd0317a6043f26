"""Labelled images as the evaluators see them: read one at a time, from files or from memory.

Letters: n images, C channels, H W pixels.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from mst.data.decoding import decode_image
from mst.data.labelled import LabelledFolder
from mst.data.sources import ImageIndex, even_positions
from mst.data.statistics import measured_scale
from mst.data.value_range import BY_TYPE, Scale, ValueRanges
from mst.errors import DataError
from mst.evaluate.common.content import identity_of_files, identity_of_values
from mst.runtime.identity import DataIdentity, identify, together


@dataclass(frozen=True)
class ImageSet:
    """Images that are read one at a time, with their labels.

    Attributes:
        names: a path or another name for each image, shown when it cannot be read.
        labels: class numbers [n], int64.
        read: index -> uint8 image [C, H, W]; may raise `mst.data.decoding.UnreadableImage`.
        files: whether the names are paths of the images.
        scale: how values that are not stored in 8 bits become such.
    """

    names: tuple[str, ...]
    labels: Tensor
    read: Callable[[int], Tensor]
    files: bool = False
    scale: Scale = BY_TYPE

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.names)

    @staticmethod
    def from_paths(
        paths: Sequence[Path] | ImageIndex, labels: Tensor | Sequence[int], *, channels: int, scale: Scale = BY_TYPE
    ) -> ImageSet:
        """Return a set that decodes a file each time it is read."""
        return ImageSet(
            tuple(map(str, paths)),
            torch.as_tensor(labels, dtype=torch.int64),
            lambda index: decode_image(paths[index], channels=channels, scale=scale),
            files=True,
            scale=scale,
        )

    @staticmethod
    def from_tensors(images: Sequence[Tensor], labels: Tensor | Sequence[int]) -> ImageSet:
        """Return a set over uint8 images [C, H, W] in memory."""
        names = tuple(f"image {index}" for index in range(len(images)))
        return ImageSet(names, torch.as_tensor(labels, dtype=torch.int64), lambda index: images[index])

    def subset(self, indices: Sequence[int]) -> ImageSet:
        """Return the images at `indices`, in that order."""
        chosen = list(indices)
        read = self.read
        return ImageSet(
            tuple(self.names[index] for index in chosen),
            self.labels[chosen],
            lambda position: read(chosen[position]),
            self.files,
            self.scale,
        )

    def fingerprint(self) -> DataIdentity:
        """Return the identity of names, labels and content; of sets in memory 64 images are read."""
        labels = self.labels.numpy().tobytes()
        if self.files:
            return identity_of_files(self.names, files=[Path(name) for name in self.names], annotations=[labels])
        chosen = even_positions(len(self), 64).tolist()
        return identity_of_values(self.names, (self.read(index) for index in chosen), annotations=[labels])


@dataclass(frozen=True)
class LabelledSets:
    """A training and a validation set over the same classes."""

    classes: tuple[str, ...]
    train: ImageSet
    val: ImageSet

    def __post_init__(self) -> None:
        for name, images in (("train", self.train), ("val", self.val)):
            if len(images) == 0:
                raise DataError(f"the {name} set is empty: at least one labelled image is needed")
            if int(images.labels.min()) < 0 or int(images.labels.max()) >= len(self.classes):
                raise DataError(f"the {name} set has a label outside 0..{len(self.classes) - 1}")

    def fingerprint(self) -> DataIdentity:
        """Return the identity of both sets and their classes."""
        classes = identify("", [], count=0, annotations=[os.fsencode(name) for name in self.classes])
        return together("", self.train.fingerprint(), self.val.fingerprint(), classes)

    def check_classes(self, part: Literal["train", "val"] = "train") -> None:
        """Refuse a part whose images are all of one class: whatever is found in it would be right.

        Raises:
            DataError: there is one class only.
        """
        images, title = (self.train, "training") if part == "train" else (self.val, "validation")
        found = torch.unique(images.labels).tolist()
        if len(found) == 1:
            raise DataError(
                f"the {title} images ({len(images)}) are all of class {self.classes[found[0]]}, so every answer would "
                "be right: images of at least 2 classes are needed"
            )

    @staticmethod
    def from_folder(
        root: str | Path,
        *,
        channels: int,
        ranges: ValueRanges | None = None,
        train_limit: int | None = None,
        val_limit: int | None = None,
        strict: bool = False,
    ) -> LabelledSets:
        """Return the sets of `train/<class>/` and `val/<class>/` below `root`.

        Args:
            root: the folder.
            channels: of the images.
            ranges: value ranges that are known; others are measured on them. None = each image decides.
            train_limit: at most this many training images, drawn evenly over the classes; None = all.
            val_limit: at most this many validation images.
            strict: accept nothing in the folder that cannot be used.

        Raises:
            UsageError: no folder with labelled images; the message says what is missing.
            DataError: no value range is known and none can be seen.
        """
        folder = LabelledFolder(root, channels=channels, strict=strict)
        train, val = folder.train.evenly(train_limit), folder.val.evenly(val_limit)
        scale = measured_scale(ImageIndex.joined([train.paths, val.paths]), channels=channels, known=ranges)
        return LabelledSets(
            folder.classes,
            ImageSet.from_paths(train.paths, train.labels, channels=channels, scale=scale),
            ImageSet.from_paths(val.paths, val.labels, channels=channels, scale=scale),
        )
