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
"""So many images of a validation set are decoded before a training whose result they decide."""


@dataclass(frozen=True)
class CocoObject:
    """One annotation.

    Attributes:
        id: of the annotation in its file; its place there where it has none.
        label: position of its category in `CocoSet.classes`.
        box: (x0, y0, x1, y1) in pixels of the upright image, ends exclusive.
        area: pixels, as the file has it, else of the mask or box; decides small, medium and large.
        crowd: a region of many objects; never an object to be found, and never a false alarm.
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
        header: what the file says of itself; None = it was not asked, or has no header that Pillow knows.
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
        """What messages call it: its path, or where it lies in a larger file."""
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
    """Refuse an image of another size (H, W), upright, than its annotations are for.

    Raises:
        DataError: naming it, and the EXIF orientation where it has one.
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
    """Return what a file, or its content, says of itself, or None where Pillow finds no header."""
    try:
        return image_header(file)
    except Exception:  # whatever damaged bytes raise: the decoder says what is wrong
        return None


def check_images(images: Sequence[CocoImage], *, channels: int, decoded: int = READ_BEFORE) -> None:
    """Look at all images before hours of training, not in their midst: headers of all, the pixels of some.

    Args:
        images: with the headers that `read_coco` has read.
        channels: of the backbone.
        decoded: so many are decoded, at even distances, and those without a header that Pillow knows.

    Raises:
        DataError: an image has another size than its annotations say; or one that is decoded cannot be, or has not
            the channels of the backbone.
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
