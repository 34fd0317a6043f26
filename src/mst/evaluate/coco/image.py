"""An annotated image and its objects, and the check of all images before anything is trained on them.

Letters: H W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from mst.data.decoding import OtherChannels, UnreadableImage, read_image
from mst.data.sources import ImageSource, even_positions
from mst.data.value_range import BY_TYPE, Scale
from mst.errors import DataError
from mst.evaluate.coco.masks import Segmentation
from mst.runtime.images import Header, image_header

READ_BEFORE = 256
"""Images of a validation set that are decoded before a training that is going to be scored on them."""


@dataclass(frozen=True)
class CocoObject:
    """One annotation.

    Attributes:
        id: of the annotation in its file; if it has none, its place there.
        label: position of its category in `CocoSet.classes`.
        box: (x0, y0, x1, y1) in pixels of the upright image, ends exclusive.
        area: in pixels, from the file or else of the mask or box; decides whether an object is small, medium or large.
        crowd: a region of many objects: it need not be found, and finding it is no mistake.
        segmentation: its mask, checked; None = the file has none.
    """

    id: int
    label: int
    box: tuple[float, float, float, float]
    area: float
    crowd: bool
    segmentation: Segmentation | None


@dataclass(frozen=True)
class CocoImage:
    """One image and its objects.

    Attributes:
        id: of the image in its file.
        source: where its bytes are.
        position: in the source.
        size: (H, W), upright.
        objects: in the order of the file.
        header: size and orientation as the file states them; None = not read, or not known to Pillow.
        scale: how values that are not stored in 8 bits become such.
    """

    id: int
    source: ImageSource
    position: int
    size: tuple[int, int]
    objects: tuple[CocoObject, ...]
    header: Header | None = field(default=None, compare=False)
    scale: Scale = BY_TYPE

    @property
    def name(self) -> str:
        """Its name in messages: its path, or its place in a larger file."""
        return self.source.name(self.position)

    def read(self, *, channels: int = 3) -> Tensor:
        """Return the pixels, uint8 [C, H, W].

        Raises:
            UnreadableImage: the file gives no image.
            DataError: it has another size than the annotations say.
        """
        image = read_image(self.source, self.position, channels=channels, scale=self.scale)
        check_size(self.name, (image.shape[-2], image.shape[-1]), self.size, self.header)
        return image


def check_size(name: str, found: tuple[int, int], stated: tuple[int, int], header: Header | None) -> None:
    """Refuse an image whose upright size (H, W) is not the one that its annotations state.

    Raises:
        DataError: names it, and its EXIF orientation if it has one.
    """
    if found == stated:
        return
    turn = ""
    if header is not None and header.orientation != 1:
        turn = f"; EXIF orientation {header.orientation} turns the stored {header.stored[0]}x{header.stored[1]}"
    raise DataError(
        f"{name}: the image is {found[0]}x{found[1]}, its annotations say {stated[0]}x{stated[1]} (H x W){turn}"
    )


def header_of(file: Path | bytearray) -> Header | None:
    """Return size and orientation as a file, or its content, states them; None if Pillow finds no header."""
    try:
        return image_header(file)
    except Exception:  # whatever damaged bytes raise: the decoder says what is wrong
        return None


def check_images(images: Sequence[CocoImage], *, channels: int, decoded: int = READ_BEFORE) -> None:
    """Check all images before a training of hours: the headers of all, the pixels of some.

    Args:
        images: with the headers that `read_coco` has read.
        channels: of the backbone.
        decoded: how many to decode, at even distances; those whose header Pillow does not know are decoded as well.

    Raises:
        DataError: an image has another size than its annotations state, cannot be decoded, or has not the backbone's
            channels.
    """
    chosen = set(even_positions(len(images), decoded).tolist())
    for position, image in enumerate(images):
        header = image.header or _header(image)
        if header is not None:
            check_size(image.name, header.upright, image.size, header)
        if header is not None and position not in chosen:
            continue
        try:
            image.read(channels=channels)
        except OtherChannels as problem:
            raise DataError(f"{problem} by the backbone") from problem
        except UnreadableImage as problem:
            raise DataError(f"an annotated image cannot be read: {problem}") from problem


def _header(image: CocoImage) -> Header | None:
    try:
        return header_of(image.source.read_bytes(image.position))
    except OSError:
        return None
