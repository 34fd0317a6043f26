"""JPEG by its bytes: what its headers say, by how much it may shrink, and the native decoder for plain ones.

That decoder is about 1.5x Pillow at 500x375, 4x at 32x32. Its operator is called directly because `torchvision.io`
warns of its own removal; where the operator is missing Pillow does it all.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import NamedTuple

import torch
import torchvision  # noqa: F401  (registers torch.ops.image)
from torch import Tensor

from mst.runtime.images import MAX_PIXELS, open_image, orientation

NATIVE_JPEG = getattr(torch.ops.image, "decode_jpeg", None)
_READ_GREY, _READ_RGB = 1, 3  # torchvision.io.ImageReadMode
APP1, SCAN = 0xE1, 0xDA
"""Markers of the segments that hold EXIF and XMP, and of the pixels (ITU-T T.81, table B.1)."""
ORIENTATION, UPRIGHT = 0x0112, (3, 1, 1)
"""Tag of EXIF, and its type (a short), count and value in pictures that lie as they are stored."""


class Detail(NamedTuple):
    """What an image has to keep where a JPEG is decoded at a part of its size.

    Attributes:
        pixels: height times width.
        side: the shorter side.
    """

    pixels: int
    side: int


REDUCTIONS = (8, 4)
"""libjpeg decodes at these fractions of the size from a few coefficients of each 8 x 8 block; 1/2 gains no time."""


def jpeg_header(data: bytes | bytearray) -> tuple[int, int, int] | None:
    """Return (H, W, components) as an 8-bit JPEG's frame header claims them, or None (ITU-T T.81, annex B)."""
    for marker, at in segments(data):
        if 0xC0 <= marker <= 0xCF and marker not in {0xC4, 0xC8, 0xCC}:
            if data[at + 4] != 8:
                return None
            return data[at + 5] << 8 | data[at + 6], data[at + 7] << 8 | data[at + 8], data[at + 9]
    return None


def segments(data: bytes | bytearray) -> Iterator[tuple[int, int]]:
    """Yield marker and place of each segment; they end with the data, or at anything that is none."""
    if data[:3] != b"\xff\xd8\xff":
        return
    at = 2
    while at + 9 < len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker == 0xFF:  # fill byte
            at += 1
            continue
        yield marker, at
        at += 2 + (data[at + 2] << 8 | data[at + 3])


def jpeg_orientation(data: bytes | bytearray) -> int:
    """Return what `mst.runtime.images.orientation` says of a JPEG; only one that may be turned is opened for it."""
    for marker, at in segments(data):
        if marker == APP1 and _may_turn(data[at + 4 : at + 2 + (data[at + 2] << 8 | data[at + 3])]):
            try:
                with open_image(data) as image:
                    return orientation(image)
            except Exception:  # whatever damaged bytes raise: the pixels are the decoder's to judge
                return 1
        if marker == SCAN:
            break
    return 1


def _may_turn(segment: bytes | bytearray) -> bool:
    """Return whether EXIF or XMP may say an orientation but the first: whatever is not as usual may."""
    if not segment.startswith(b"Exif\0\0"):
        return b"Orientation" in segment
    order = {b"II": "<", b"MM": ">"}.get(bytes(segment[6:8]))
    try:
        (start,) = struct.unpack_from(f"{order}I", segment, 10)
        (count,) = struct.unpack_from(f"{order}H", segment, 6 + start)
        entries = (struct.unpack_from(f"{order}HHIHH", segment, 8 + start + 12 * place) for place in range(count))
        return next((entry[1:4] != UPRIGHT for entry in entries if entry[0] == ORIENTATION), False)
    except struct.error:
        return True


def jpeg_reduction(data: bytes | bytearray, enough: Detail) -> int:
    """Return by how much the sides of a JPEG can be divided while it keeps what is enough; 1 for all other files."""
    header = jpeg_header(data)
    if header is None or header[2] not in {1, 3}:
        return 1
    sides = [(header[0] // reduction, header[1] // reduction, reduction) for reduction in REDUCTIONS]
    fits = (by for height, width, by in sides if height * width >= enough.pixels and min(height, width) >= enough.side)
    return next(fits, 1)


def plain_jpeg(data: bytearray, channels: int) -> Tensor | None:
    """Decode a grey or three-component JPEG natively; None = leave it to Pillow, whose word on damage counts."""
    if NATIVE_JPEG is None or channels not in {1, 3}:
        return None
    header = jpeg_header(data)
    if header is None or header[2] not in {1, 3} or header[0] * header[1] > MAX_PIXELS:
        return None
    try:
        # As stored: torchvision does not look at XMP, nor at EXIF behind another APP1 segment.
        image: Tensor = NATIVE_JPEG(
            torch.frombuffer(data, dtype=torch.uint8), _READ_RGB if channels == 3 else _READ_GREY, False
        )  # [C, H, W]
    except RuntimeError:
        return None
    image = turned(image, jpeg_orientation(data))
    return image[None].contiguous(memory_format=torch.channels_last)[0]


def turned(image: Tensor, turn: int) -> Tensor:
    """Return stored pixels [C, H, W] the way up that an orientation of 1 to 8 says."""
    if turn >= 5:
        image = image.transpose(1, 2)
    flips = [1] * (turn in {3, 4, 7, 8}) + [2] * (turn in {2, 3, 6, 7})
    return image.flip(flips) if flips else image
