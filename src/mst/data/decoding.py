"""One image file to one uint8 tensor: every common form of picture, and one exception for everything else.

Plain JPEGs take torchvision's native decoder (about 1.5x Pillow at 500x375, 4x at 32x32), all else Pillow. Its operator
is called directly because `torchvision.io` warns of its own removal; where the operator is missing Pillow does it all.
"""

from __future__ import annotations

import io
import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import torchvision  # noqa: F401  (registers torch.ops.image)
from PIL import Image, ImageSequence
from torch import Tensor

from mst.data.tiff import Page, pillow_reads, read_pages
from mst.errors import DataError, MissingExtra
from mst.runtime.images import MAX_PIXELS, open_image, quiet_pillow, read_regular, upright

FLOAT_SLACK = 0.05
"""How far float pixels from [0, 1] may lie beyond it: resampling and sharpening overshoot."""

NPY_MAGIC = b"\x93NUMPY"

_NATIVE_JPEG = getattr(torch.ops.image, "decode_jpeg", None)
_READ_GREY, _READ_RGB = 1, 3  # torchvision.io.ImageReadMode


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


class UnreadableImage(DataError):
    """A file that gives no image.

    Attributes:
        path: the file.
        reason: why, on one line.
    """

    def __init__(self, path: str | Path, reason: str) -> None:
        super().__init__(path, reason)  # both: so that it travels between processes
        self.path = Path(path)
        self.reason = " ".join(reason.split()) or "unknown"

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


class OtherChannels(UnreadableImage):
    """An image of another number of channels than asked for: whoever asked says by which option."""


def decode_image(path: str | Path, *, channels: int = 3, enough: Detail | None = None) -> Tensor:
    """Return the image in a file, upright (EXIF orientation applied), first frame of an animation.

    Palette and CMYK become RGB; transparent pixels are laid over white; 16 bits are scaled to 8 over their full range,
    other depths of a TIFF over theirs (12 bits: 4095 is white); float images must lie in [0, 1] or [0, 255]. Signed and
    wider whole numbers are refused: what is white among them is not known. TIFFs of layouts that Pillow does not read
    need tifffile (`mst[tiff]`). Arrays in `.npy` files are [H, W], [H, W, channels] or
    [channels, H, W] (the first that fits) and are read without running code from them.

    Args:
        path: the file; its content decides how it is read, not its extension.
        channels: 3 for RGB, 1 for grey (luminance); any other number reads the bands of all pages of a TIFF as stored.
            An array must have exactly that many.
        enough: a larger JPEG is decoded at 1/4 or 1/8 of its size, the smallest that keeps this much: quicker, and
            nearly the pixels of resizing the whole; None = always at its full size.

    Returns:
        uint8 [channels, H, W], the channels of a pixel together in memory.

    Raises:
        UnreadableImage: no file, no permission, empty, damaged, truncated, too large, unknown form, or (as
            `OtherChannels`) another number of channels than asked for.
        MissingExtra: a TIFF that needs tifffile.
    """
    try:
        data = read_regular(path)
        if not data:
            raise UnreadableImage(path, "empty file")
        if data.startswith(NPY_MAGIC):
            return _decode_array(path, data, channels)
        if not pillow_reads(data):
            return _decode_tiff(path, data, channels)
        reduction = 1 if enough is None else jpeg_reduction(data, enough)
        image = _decode_plain_jpeg(data, channels) if reduction == 1 else None
        return image if image is not None else _decode_with_pillow(path, data, channels, reduction)
    except (UnreadableImage, MissingExtra):
        raise
    except OSError as error:
        raise UnreadableImage(path, error.strerror or _without_addresses(error)) from error
    except MemoryError as error:
        raise UnreadableImage(path, "not enough memory to decode it") from error
    except Exception as error:  # a decoder may stumble over damaged bytes in any way
        raise UnreadableImage(path, _without_addresses(error)) from error


def jpeg_header(data: bytes | bytearray) -> tuple[int, int, int] | None:
    """Return (H, W, components) as an 8-bit JPEG's frame header claims them, or None (ITU-T T.81, annex B)."""
    if data[:3] != b"\xff\xd8\xff":
        return None
    at = 2
    while at + 9 < len(data):
        if data[at] != 0xFF:
            return None
        marker = data[at + 1]
        if marker == 0xFF:  # fill byte
            at += 1
        elif 0xC0 <= marker <= 0xCF and marker not in {0xC4, 0xC8, 0xCC}:
            if data[at + 4] != 8:
                return None
            return data[at + 5] << 8 | data[at + 6], data[at + 7] << 8 | data[at + 8], data[at + 9]
        else:
            at += 2 + (data[at + 2] << 8 | data[at + 3])
    return None


def jpeg_reduction(data: bytes | bytearray, enough: Detail) -> int:
    """Return by how much the sides of a JPEG can be divided while it keeps what is enough; 1 for all other files."""
    header = jpeg_header(data)
    if header is None or header[2] not in {1, 3}:
        return 1
    sides = [(header[0] // reduction, header[1] // reduction, reduction) for reduction in REDUCTIONS]
    fits = (by for height, width, by in sides if height * width >= enough.pixels and min(height, width) >= enough.side)
    return next(fits, 1)


def _decode_plain_jpeg(data: bytearray, channels: int) -> Tensor | None:
    """Decode a grey or three-component JPEG natively; None = leave it to Pillow, whose word on damage counts."""
    if _NATIVE_JPEG is None or channels not in {1, 3}:
        return None
    header = jpeg_header(data)
    if header is None or header[2] not in {1, 3} or header[0] * header[1] > MAX_PIXELS:
        return None
    try:
        image: Tensor = _NATIVE_JPEG(
            torch.frombuffer(data, dtype=torch.uint8), _READ_RGB if channels == 3 else _READ_GREY, True
        )  # [C, H, W]
    except RuntimeError:
        return None
    return image[None].contiguous(memory_format=torch.channels_last)[0]


def _decode_with_pillow(path: str | Path, data: bytearray, channels: int, reduction: int) -> Tensor:
    """Decode anything in `FORMATS`; errors are Pillow's, and its remarks about damaged metadata stay unsaid."""
    with quiet_pillow, open_image(data) as image:
        if reduction > 1:
            image.draft(None, (image.width // reduction, image.height // reduction))
        # [H, W] or [H, W, channels]
        pixels = _grey_or_rgb(upright(image), channels) if channels in {1, 3} else _bands(path, image, channels)
    pixels = np.array(np.atleast_3d(pixels), dtype=np.uint8, order="C")  # [H, W, C], a writable copy
    return torch.from_numpy(pixels).permute(2, 0, 1)


def _decode_tiff(path: str | Path, data: bytearray, channels: int) -> Tensor:
    """Decode a TIFF whose layout Pillow does not read."""
    pages = read_pages(data, first_only=channels in {1, 3})
    if channels in {1, 3}:
        pixels = _grey_or_rgb_of(path, pages[0], channels)
    else:
        pixels = np.concatenate([_eight_bits(page.values, page.white) for page in pages], axis=2)
        _check_bands(path, pixels.shape[2], channels)
    return torch.from_numpy(np.array(pixels, dtype=np.uint8, order="C")).permute(2, 0, 1)


def _grey_or_rgb_of(path: str | Path, page: Page, channels: int) -> npt.NDArray[np.uint8]:
    """Return [H, W, channels] of a page: its colours over white where it is transparent, as Pillow converts them."""
    values = _eight_bits(page.values, page.white)  # [H, W, C]
    colours = values.shape[2] - page.alpha
    if colours not in {1, 3} or (colours == 3 and not page.colours and channels == 1):
        _check_bands(path, values.shape[2], channels)
    image = Image.fromarray(np.ascontiguousarray(values[..., :colours].squeeze(2) if colours == 1 else values[..., :3]))
    if page.alpha:
        white = Image.new(image.mode, image.size, "white")
        image = Image.composite(image, white, Image.fromarray(np.ascontiguousarray(values[..., -1])))
    return np.atleast_3d(np.asarray(image.convert("L" if channels == 1 else "RGB")))


def _check_bands(path: str | Path, found: int, channels: int) -> None:
    """Refuse another number of bands than asked for."""
    if found != channels:
        raise OtherChannels(path, f"has {found} channel{'s' * (found != 1)}, {channels} are asked for")


def _decode_array(path: str | Path, data: bytearray, channels: int) -> Tensor:
    """Decode a .npy file: the header is read by NumPy's own reader and must agree with the file's size."""
    stream = io.BytesIO(data)
    read_header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    version = np.lib.format.read_magic(stream)
    if version not in read_header:
        raise ValueError(f"a .npy file of version {version}: only 1.0 and 2.0 are understood")
    shape, fortran, dtype = read_header[version](stream)
    if dtype.kind not in "buif":
        raise ValueError(f"an array of {dtype}: only whole numbers and floats are understood")
    count = math.prod(shape)
    if count == 0 or stream.tell() + count * dtype.itemsize > len(data):
        raise ValueError(f"an array of shape {shape} in {len(data)} bytes: empty or truncated")
    values = np.frombuffer(data, dtype, count, stream.tell()).reshape(shape, order="F" if fortran else "C")
    if values.ndim == 2 and channels == 1:
        pixels = values[..., None]
    elif values.ndim == 3 and values.shape[2] == channels:
        pixels = values
    elif values.ndim == 3 and values.shape[0] == channels:
        pixels = values.transpose(1, 2, 0)
    else:
        raise OtherChannels(path, f"has shape {shape}, {channels} channels first or last are asked for")
    pixels = np.array(_eight_bits(pixels), dtype=np.uint8, order="C")  # [H, W, C], a writable copy
    return torch.from_numpy(pixels).permute(2, 0, 1)


def _grey_or_rgb(image: Image.Image, channels: int) -> npt.NDArray[np.uint8]:
    """Return [H, W] (channels 1) or [H, W, 3] of any Pillow mode."""
    mode = "L" if channels == 1 else "RGB"
    if image.mode.startswith("I") or image.mode == "F":
        image = Image.fromarray(_eight_bits(image))
    elif image.has_transparency_data:
        front = image.convert("RGBA")
        image = Image.new("RGBA", front.size, "white")
        image.alpha_composite(front)
    return np.asarray(image if image.mode == mode else image.convert(mode))


def _bands(path: str | Path, image: Image.Image, channels: int) -> npt.NDArray[np.uint8]:
    """Return [H, W, channels]: the bands of every page side by side, colours as stored."""
    pages = [np.atleast_3d(_eight_bits(page)) for page in ImageSequence.Iterator(image)]  # each [H, W, bands]
    _check_bands(path, sum(page.shape[2] for page in pages), channels)
    return np.concatenate(pages, axis=2)


def _eight_bits(image: Image.Image | npt.NDArray[Any], white: int | None = None) -> npt.NDArray[np.uint8]:
    """Return the pixels as uint8: whole numbers over the range of their type, floats from [0, 1] or [0, 255].

    Args:
        image: pixels.
        white: what white is among whole numbers; None = the largest of the type.
    """
    values = np.asarray(image)
    if isinstance(image, Image.Image) and image.mode == "I" and image.format != "TIFF":
        values = values.astype(np.uint16)  # older Pillows' way to give a PNG or PPM of 16 bits
    if values.dtype == np.uint8 and white is None:
        scaled = values
    elif values.dtype == np.bool_:
        scaled = values * np.uint8(255)
    elif values.dtype.kind == "f":
        low, high = values.min(), values.max()
        if not (low >= -FLOAT_SLACK and high <= 255):  # also when not a number
            raise ValueError(f"float pixels from {low:g} to {high:g}: only [0, 1] or [0, 255] is understood")
        scaled = np.rint(np.clip(values, 0, 1) * 255 if high <= 1 + FLOAT_SLACK else np.clip(values, 0, 255))
    elif values.dtype.kind == "u" and (white is not None or values.dtype.itemsize == 2):
        top = white or 65535
        scaled = (values.astype(np.uint32) * 255 + top // 2) // top
    else:
        raise ValueError(
            f"{values.dtype} pixels from {values.min()} to {values.max()}: what is white among them is not known; "
            "store them as uint8 or uint16"
        )
    result: npt.NDArray[np.uint8] = scaled.astype(np.uint8, copy=False)
    return result


def _without_addresses(error: Exception) -> str:
    """Return an error's text without the object address that Pillow prints for bytes in memory."""
    text = str(error) or type(error).__name__
    return "not an image in a known format" if "cannot identify image file" in text else text
