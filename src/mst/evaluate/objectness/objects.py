"""Images and the objects in them: a COCO folder, drawn scenes, or a set in memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from mst.data.decoding import read_image
from mst.data.sources import ImageSource, even_positions
from mst.data.sources.arrays import MemoryImages
from mst.data.synthetic.scenes import SceneSet
from mst.data.value_range import BY_TYPE, Scale
from mst.errors import DataError
from mst.evaluate.coco.image import check_size
from mst.evaluate.coco.masks import mask_of
from mst.evaluate.coco.reading import CocoImage, CocoSet, images_of
from mst.runtime.identity import DataIdentity, annotated
from mst.runtime.logging import warn


class ObjectImage(NamedTuple):
    """One image and its objects.

    Attributes:
        image: uint8 [C, H, W].
        masks: bool [M, H, W], one per object; None = they have boxes only.
        boxes: [M, 4].
        ignored: bool [H, W], pixels of crowds, which count for nothing.
    """

    image: Tensor
    masks: NDArray[np.bool_] | None
    boxes: NDArray[np.float64]
    ignored: NDArray[np.bool_]


Truth = tuple[NDArray[np.bool_] | None, NDArray[np.float64], NDArray[np.bool_]]
"""Masks, boxes and ignored pixels, as of `ObjectImage`."""


@dataclass(frozen=True)
class ObjectSet:
    """Images of any source, and the objects in each.

    Attributes:
        title: what the set is called.
        images: where their bytes are.
        truth: (index, (H, W) of the image) -> its objects.
        channels: C.
        scale: how values that are not stored in 8 bits become such.
        without_objects: images that were left out because nothing is annotated in them.
        annotations: what the objects come from, or None.
        sizes: (H, W) of each image, as the annotations state it; None = not known before it is read.
    """

    title: str
    images: ImageSource
    truth: Callable[[int, tuple[int, int]], Truth]
    channels: int = 3
    scale: Scale = BY_TYPE
    without_objects: int = 0
    annotations: CocoSet | None = None
    sizes: Sequence[tuple[int, int]] | None = None

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.images)

    def name(self, index: int) -> str:
        """Return what messages call an image."""
        return self.images.name(index)

    def read(self, index: int) -> ObjectImage:
        """Return an image and its objects.

        Raises:
            UnreadableImage: its bytes give no image.
            DataError: it has another size than its annotations say.
        """
        image = read_image(self.images, index, channels=self.channels, scale=self.scale)
        return ObjectImage(image, *self.truth(index, (image.shape[1], image.shape[2])))

    def evenly(self, limit: int | None) -> ObjectSet:
        """Return at most `limit` of the images, spread evenly over the set; None = all."""
        if limit is None or limit >= len(self):
            return self
        chosen = even_positions(len(self), limit)
        sizes = None if self.sizes is None else [self.sizes[index] for index in chosen.tolist()]
        images, truth = self.images.only(chosen), lambda i, size: self.truth(int(chosen[i]), size)
        return replace(self, images=images, truth=truth, sizes=sizes)

    def fingerprint(self) -> DataIdentity:
        """Return the identity of names and content; of sets without a file of annotations 8 images' truth is read."""
        if self.annotations is not None:
            return annotated(self.images.fingerprint(), self.annotations.described())
        read = (self.read(index) for index in even_positions(len(self), 8).tolist())
        told = (part.tobytes() for item in read for part in item[1:] if part is not None)
        return annotated(self.images.fingerprint(self.title), told)


def coco_objects(coco: CocoSet, *, channels: int = 3) -> ObjectSet:
    """Return the images that have objects; crowds are no objects, their pixels are ignored.

    Raises:
        DataError: there is none.
    """
    kept = [image for image in coco.images if any(not found.crowd for found in image.objects)]
    if not kept:
        raise DataError(f"{coco.file}: no image has an object")

    def truth(index: int, size: tuple[int, int]) -> Truth:
        check_size(kept[index].name, size, kept[index].size, kept[index].header)
        return _truth(kept[index], masks=coco.masks)

    if not coco.masks:
        warn(f"{coco.file}: objects have no masks, so that CorLoc is measured, which needs boxes, and no Jaccard")
    left_out = len(coco.images) - len(kept)
    sizes = [image.size for image in kept]
    return ObjectSet(coco.file.name, images_of(kept), truth, channels, kept[0].scale, left_out, coco, sizes)


def _truth(image: CocoImage, *, masks: bool) -> Truth:
    boxes = np.asarray([found.box for found in image.objects if not found.crowd], dtype=np.float64)
    ignored = np.zeros(image.size, dtype=np.bool_)
    if not masks:
        return None, boxes, ignored
    drawn = [(found.crowd, mask_of(found.segmentation)) for found in image.objects if found.segmentation is not None]
    for crowd, mask in drawn:
        ignored |= mask & crowd
    return np.stack([mask for crowd, mask in drawn if not crowd]), boxes, ignored


def scene_objects(scenes: SceneSet) -> ObjectSet:
    """Return synthetic scenes, drawn once into memory, with all their objects, small ones included."""
    drawn = list(scenes)

    def truth(index: int, size: tuple[int, int]) -> Truth:
        return drawn[index].instance_masks, drawn[index].boxes.astype(np.float64), np.zeros(size, dtype=np.bool_)

    title = (
        f"{scenes.style.name} of seed {scenes.seed}, {scenes.start}..{scenes.start + len(scenes) - 1}, {scenes.size} px"
    )
    names = [f"scene {scenes.start + number}" for number in range(len(scenes))]
    images = MemoryImages([scene.image.transpose(1, 2, 0) for scene in drawn], names)
    return ObjectSet(title, images, truth)
