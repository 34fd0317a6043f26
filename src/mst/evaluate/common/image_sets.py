"""Labelled images as the evaluators see them: read one at a time, from any source.

Letters: n images, C channels, H W pixels.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from mst.data.decoding import read_image
from mst.data.labelled import LabelledFolder, LabelOptions, Split
from mst.data.sources import ImageSource
from mst.data.sources.arrays import MemoryImages
from mst.data.sources.mixed import MixedImages
from mst.data.sources.shard_cache import ShardCache
from mst.data.statistics import measured_scale
from mst.data.value_range import BY_TYPE, Scale, ValueRanges
from mst.errors import DataError
from mst.runtime.identity import DataIdentity, annotated, identify, together, with_split


@dataclass(frozen=True)
class ImageSet:
    """Images with labels, from any source.

    Attributes:
        images: where their bytes are.
        labels: class numbers [n], int64.
        channels: C.
        scale: how values that are not stored in 8 bits become such.
    """

    images: ImageSource
    labels: Tensor
    channels: int = 3
    scale: Scale = BY_TYPE

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.images)

    @staticmethod
    def from_tensors(images: Sequence[Tensor], labels: Tensor | Sequence[int]) -> ImageSet:
        """Return a set over uint8 images [C, H, W] in memory."""
        channels = images[0].shape[0] if len(images) else 3
        return ImageSet(MemoryImages.of_tensors(images), torch.as_tensor(labels, dtype=torch.int64), channels)

    def name(self, index: int) -> str:
        """Return what messages call an image."""
        return self.images.name(index)

    def read(self, index: int) -> Tensor:
        """Return an image, uint8 [C, H, W].

        Raises:
            UnreadableImage: its bytes give none.
        """
        return read_image(self.images, index, channels=self.channels, scale=self.scale)

    def subset(self, indices: Sequence[int]) -> ImageSet:
        """Return the images at `indices`, in that order."""
        chosen = np.asarray(indices, dtype=np.int64)
        return replace(self, images=self.images.only(chosen), labels=self.labels[torch.from_numpy(chosen)])

    def fingerprint(self) -> DataIdentity:
        """Return the identity of names, labels and content."""
        return annotated(self.images.fingerprint(), [self.labels.numpy().tobytes()])


@dataclass(frozen=True)
class LabelledSets:
    """A training and a validation set over the same classes.

    Attributes:
        classes: their names.
        train: images to learn from.
        val: images to score.
        split: who divided them, and how; None = they were given in memory.
    """

    classes: tuple[str, ...]
    train: ImageSet
    val: ImageSet
    split: Split | None = None

    def __post_init__(self) -> None:
        for name, images in (("train", self.train), ("val", self.val)):
            if len(images) == 0:
                raise DataError(f"the {name} set is empty: at least one labelled image is needed")
            if int(images.labels.min()) < 0 or int(images.labels.max()) >= len(self.classes):
                raise DataError(f"the {name} set has a label outside 0..{len(self.classes) - 1}")

    def fingerprint(self) -> DataIdentity:
        """Return the identity of both sets and their classes."""
        classes = identify("", [], count=0, annotations=[os.fsencode(name) for name in self.classes])
        found = together("", self.train.fingerprint(), self.val.fingerprint(), classes)
        return with_split(found, self.split.row()) if self.split is not None and self.split.automatic else found

    def check_classes(self, part: Literal["train", "val"] = "train") -> None:
        """Refuse a part whose images are all of one class: every answer would be right.

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
        labels: LabelOptions | None = None,
        cache: ShardCache | None = None,
    ) -> LabelledSets:
        """Return the sets of `train/<class>/` and `val/<class>/` below `root`, or in another form (`LabelledFolder`).

        Args:
            root: the folder, a table of paths and labels, or shards (a pattern, `hf:NAME`, an address).
            channels: of the images.
            ranges: value ranges that are known; those of other types of numbers are measured on these images.
                None = each image decides for itself.
            train_limit: at most this many training images, drawn evenly from the list that is sorted by class; None =
                all.
            val_limit: at most this many validation images.
            strict: refuse a folder that holds anything that cannot be used.
            labels: a table of labels, the part to score, and the split of images that have none.
            cache: of shards of other machines; None = the usual one.

        Raises:
            UsageError: no folder with labelled images; the message says what is missing.
            DataError: no value range is known and none can be seen.
        """
        folder = LabelledFolder(root, labels=labels or LabelOptions(), channels=channels, strict=strict, cache=cache)
        return LabelledSets.of(folder, channels=channels, ranges=ranges, train_limit=train_limit, val_limit=val_limit)

    @staticmethod
    def of(
        folder: LabelledFolder,
        *,
        channels: int,
        ranges: ValueRanges | None = None,
        train_limit: int | None = None,
        val_limit: int | None = None,
    ) -> LabelledSets:
        """Return the sets of labelled images that were found; arguments and errors are those of `from_folder`."""
        train, val = folder.limited(train_limit, val_limit)
        scale = measured_scale(MixedImages([train.paths, val.paths]), channels=channels, known=ranges)
        return LabelledSets(
            folder.classes,
            ImageSet(train.paths, train.labels, channels, scale),
            ImageSet(val.paths, val.labels, channels, scale),
            folder.split,
        )
