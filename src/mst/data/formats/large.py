"""Large images in little memory: a few rows at a time, and in the memory that they were decoded into.

Letters: H W pixels, C numbers of a pixel.
"""

from __future__ import annotations

import struct
from collections.abc import Callable

import numpy as np
import torch
import torchvision  # noqa: F401  (registers torch.ops.image)
from PIL import ExifTags, Image

from mst.data.value_range import Pixels, Stored
from mst.runtime.images import MAX_PIXELS, check_memory, is_whole_png, png_chunk, without_remarks

LARGE = 1 << 24
"""Pixels above which an image is large: Pillow holds four bytes of each, and copies."""
NATIVE_PNG = getattr(torch.ops.image, "decode_png", None)
AS_STORED = 0  # torchvision.io.ImageReadMode
_SAMPLES = {0: 1, 2: 3, 4: 2, 6: 4}
"""Numbers of a pixel by a PNG's colour type (ISO/IEC 15948, table 11.1); palettes are left to Pillow."""


def is_large(image: Image.Image) -> bool:
    """Return whether an image should be converted a few rows at a time."""
    return image.width * image.height > LARGE and image.width < LARGE // 2  # else one row were large, too


def rows_at_a_time(width: int) -> int:
    """Return how many rows of a large image are converted at a time."""
    return max(1, LARGE // 8 // width)


def by_strips(values: Stored, channels: int, convert: Callable[[Stored, slice], Pixels]) -> Pixels:
    """Convert a few rows at a time, in the memory of the values where they have as many bytes; they are lost then.

    Args:
        values: [H, W, C], contiguous.
        channels: of the result.
        convert: takes rows [h, W, C] and their place, returns new ones [h, W, channels].
    """
    height, width = values.shape[:2]
    if values[0, 0].nbytes >= channels and values.flags.writeable:
        out = values.reshape(-1).view(np.uint8)[: height * width * channels].reshape(height, width, channels)
    else:
        out = np.empty((height, width, channels), np.uint8)
    rows = rows_at_a_time(width)
    for top in range(0, height, rows):  # what is written lies before what is still to be read
        place = slice(top, top + rows)
        out[place] = convert(values[place], place)
    return out


def large_png(data: bytearray, *, depth: int) -> tuple[Stored, int] | None:
    """Return the values [H, W, C] of a large PNG of so many bits, in the least memory, and its orientation.

    None where it is no such PNG, or not sound to the last byte, or has a palette, transparent colours or interlaced
    rows: Pillow has the word then.
    """
    if NATIVE_PNG is None or len(data) < 33:
        return None
    width, height, bits, colours = struct.unpack(">IIBB", data[16:26])
    samples = _SAMPLES.get(colours)
    if not LARGE < width * height <= MAX_PIXELS or bits != depth or samples is None:
        return None
    bytes_a_pixel = samples * depth // 8
    check_memory(width * height * bytes_a_pixel, len(data))
    plain = without_remarks(data, turning=False)
    if not is_whole_png(plain, 1 + width * bytes_a_pixel, height):  # what it does with a damaged one is not known
        return None
    try:
        content = torch.frombuffer(plain if plain is data else bytearray(plain), dtype=torch.uint8)
        image = NATIVE_PNG(content, AS_STORED)  # [C, H, W], the numbers of a pixel together
    except RuntimeError:
        return None
    return image.permute(1, 2, 0).numpy(), png_orientation(data)


def png_orientation(data: bytes | bytearray) -> int:
    """Return what a PNG's chunk of EXIF says: 1 to 8; 1 where there is none or it is damaged."""
    exif = png_chunk(data, b"eXIf")
    if exif is None:
        return 1
    found = Image.Exif()
    try:
        found.load(exif)
        turn = found.get(ExifTags.Base.Orientation, 1)
    except Exception:  # whatever a damaged tag raises: the pixels are sound
        return 1
    return turn if turn in range(1, 9) else 1
