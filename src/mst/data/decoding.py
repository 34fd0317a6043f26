"""The bytes of one image to one uint8 tensor: every common form of picture, and one exception for everything else.

Plain JPEGs take torchvision's native decoder, TIFFs that Pillow does not read right tifffile, all else Pillow.
"""

from __future__ import annotations

import io
import math
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageSequence
from torch import Tensor

from mst.data.formats.jpeg import Detail, jpeg_reduction, plain_jpeg
from mst.data.formats.jpeg2000 import check_depth
from mst.data.formats.large import AS_STORED, NATIVE_PNG, by_strips, is_large, large_png, rows_at_a_time
from mst.data.formats.npy import LONGEST_HEADER, NPY_MAGIC, array_header
from mst.data.formats.tiff import Page, have_tifffile, mend_palette, pillow_reads, read_pages
from mst.data.sources.protocol import ImageSource
from mst.data.value_range import BY_TYPE, ByType, Pixels, Scale, Stored, ValueRanges, eight_bits
from mst.errors import DataError, MissingExtra, Unreachable
from mst.runtime.images import (
    PNG_MAGIC,
    open_image,
    orientation,
    quiet_pillow,
    read_regular,
    turned,
    upright,
    without_remarks,
)

DEEP_COLOURS = {b"\x10\2", b"\x10\4", b"\x10\6"}
"""Depth and colour type of PNGs of which Pillow gives the upper 8 of 16 bits."""
_FEW_BITS = 63
"""Largest high byte of 16 bits of which 14 or fewer are used."""


class UnreadableImage(DataError):
    """A file that gives no image.

    Attributes:
        name: of the file, or of the image in a larger one.
        reason: why, on one line.
    """

    def __init__(self, name: str | Path, reason: str) -> None:
        super().__init__(name, reason)  # both: so that it travels between processes
        self.name = os.fspath(name)
        self.reason = " ".join(reason.split()) or "unknown"

    def __str__(self) -> str:
        return f"{self.name}: {self.reason}"


class OtherChannels(UnreadableImage):
    """An image of another number of channels than asked for: whoever asked says by which option."""


def decode_image(
    path: str | Path, *, channels: int = 3, enough: Detail | None = None, scale: Scale = BY_TYPE
) -> Tensor:
    """Return the image in a file, upright (EXIF orientation applied), first frame of an animation.

    Palette and CMYK become RGB; transparent pixels are laid over white. What is stored in other types than 8 bits
    becomes 8 by a scale: the value ranges of the data set (`mst.data.value_range.ValueRanges`), or where nothing is
    known of it by the type: 16 bits over their full range, other depths of a TIFF over theirs (12 bits: 4095 is white),
    floats that lie in [0, 1] or [0, 255]; signed and wider whole numbers are refused then. TIFFs of layouts that Pillow
    does not read need tifffile (`mst-pretrain[tiff]`). Arrays in `.npy` files are [H, W], [H, W, channels] or
    [channels, H, W] (the first that fits) and are read without running code from them.

    A large PNG takes at most 6 bytes a pixel beside its file, turned by EXIF, too (a large one of 16-bit colours with
    opacity 10); interlaced ones and other large pictures 7.

    Args:
        path: the file; its content decides how it is read, not its extension.
        channels: 3 for RGB, 1 for grey (luminance); any other number reads the bands of all pages of a TIFF as stored.
            An array must have exactly that many.
        enough: a larger JPEG is decoded at 1/4 or 1/8 of its size, the smallest that keeps this much: quicker, and
            nearly the pixels of resizing the whole; None = always at its full size.
        scale: turns values that are not stored in 8 bits into such.

    Returns:
        uint8 [channels, H, W], the channels of a pixel together in memory.

    Raises:
        UnreadableImage: no file, no permission, empty, damaged, truncated, too large, unknown form, values
            outside their range, or (as `OtherChannels`) another number of channels than asked for.
        MissingExtra: a TIFF that needs tifffile.
    """
    return _decoded(os.fspath(path), lambda: read_regular(path), channels, enough, scale)


def read_image(
    source: ImageSource, position: int, *, channels: int = 3, enough: Detail | None = None, scale: Scale = BY_TYPE
) -> Tensor:
    """Return an image of a source; all else as of `decode_image`."""
    return _decoded(source.name(position), lambda: source.read_bytes(position), channels, enough, scale)


def decode_bytes(
    name: str, data: bytearray, *, channels: int = 3, enough: Detail | None = None, scale: Scale = BY_TYPE
) -> Tensor:
    """Return the image in the content of a file called `name`; all else as of `decode_image`."""
    return _decoded(name, lambda: data, channels, enough, scale)


def _decoded(name: str, read: Callable[[], bytearray], channels: int, enough: Detail | None, scale: Scale) -> Tensor:
    """Read and decode what is called `name`."""
    try:
        data = read()
        if not data:
            raise UnreadableImage(name, "empty file")
        if data.startswith(NPY_MAGIC):
            return _decode_array(name, data, channels, scale)
        if not pillow_reads(data):
            return _decode_tiff(name, data, channels, scale)
        reduction = 1 if enough is None else jpeg_reduction(data, enough)
        image = plain_jpeg(data, channels) if reduction == 1 else None
        if image is None and data.startswith(PNG_MAGIC):
            image = decode_large_png(data, channels, scale)
        return image if image is not None else _decode_with_pillow(name, data, channels, reduction, scale)
    except (UnreadableImage, MissingExtra, Unreachable):
        raise
    except OSError as error:
        raise UnreadableImage(name, error.strerror or said(error)) from error
    except MemoryError as error:
        raise UnreadableImage(name, "not enough memory to decode it") from error
    except Exception as error:  # a decoder may stumble over damaged bytes in any way
        raise UnreadableImage(name, said(error)) from error


def decode_large_png(data: bytearray, channels: int, scale: Scale = BY_TYPE) -> Tensor | None:
    """Decode a large PNG natively, in half of Pillow's memory or less; None = leave it to Pillow."""
    deep = bytes(data[24:26]) in DEEP_COLOURS
    if channels not in {1, 3} or (deep and isinstance(scale, ByType)):  # Pillow then gives the upper 8 bits
        return None
    found = large_png(data, depth=16 if deep else 8)
    if found is None:
        return None
    values, turn = found
    alpha = values.shape[2] in {2, 4}
    opacity = eight_bits(values[..., -1], None, scale, opacity=True) if alpha and deep else None

    def convert(rows: Stored, place: slice) -> Pixels:
        if deep:
            strip = _composed(rows, None, scale, alpha=alpha, opacity=None if opacity is None else opacity[place])
        else:
            strip = Image.fromarray(rows if rows.shape[2] > 1 else rows[..., 0])
        return np.atleast_3d(_grey_or_rgb(strip, channels, scale, None))

    same = values.shape[2] == channels and not deep
    pixels = turned(values if same else by_strips(values, channels, convert), turn)
    return torch.from_numpy(np.ascontiguousarray(pixels)).permute(2, 0, 1)


def _decode_with_pillow(name: str, data: bytearray, channels: int, reduction: int, scale: Scale) -> Tensor:
    """Decode anything in `FORMATS`; errors are Pillow's, and its remarks about damaged metadata stay unsaid."""
    with quiet_pillow, open_image(data) as image:
        if reduction > 1:
            image.draft(None, (image.width // reduction, image.height // reduction))
        # [H, W] or [H, W, channels]
        if image.format == "JPEG2000":
            check_depth(data)
        elif image.format == "TIFF" and image.mode == "P":
            mend_palette(image)
        if channels in {1, 3}:
            whole = upright(image)
            deep = _deep_colours(data, image, scale)
            pixels = _grey_or_rgb(whole if deep is None else deep, channels, scale, image.format)
        else:
            pixels = _bands(name, data, image, channels, scale)
    pixels = np.require(np.atleast_3d(pixels), np.uint8, ["C", "W"])  # [H, W, C]
    return torch.from_numpy(pixels).permute(2, 0, 1)


def _deep_colours(data: bytearray, image: Image.Image, scale: Scale) -> Image.Image | None:
    """Return colours of 16 bits, of which Pillow gives the upper 8 only, by their scale, upright; None = no such.

    Raises:
        MissingExtra: they are in a TIFF and use few of their bits.
    """
    if isinstance(scale, ByType):
        return None
    if image.format == "TIFF" and 16 in image.tag_v2.get(258, ()) and not have_tifffile():  # type: ignore[attr-defined]
        if image.mode in {"RGB", "RGBA"} and int(np.asarray(image.convert("RGB")).max()) <= _FEW_BITS:
            raise MissingExtra("tifffile (for colours that use few of their 16 bits)", "tiff")
        return None
    values = _deep_png(data)
    if values is None:
        return None
    return _composed(turned(values, orientation(image)), None, scale, alpha=values.shape[2] in {2, 4})


def _deep_png(data: bytearray) -> Stored | None:
    """Return the values of a PNG of which Pillow gives the upper 8 of 16 bits, uint16 [H, W, C]; None = no such."""
    if not data.startswith(PNG_MAGIC) or bytes(data[24:26]) not in DEEP_COLOURS or NATIVE_PNG is None:
        return None
    plain = torch.frombuffer(bytearray(without_remarks(data)), dtype=torch.uint8)
    found: Stored = NATIVE_PNG(plain, AS_STORED, False).permute(1, 2, 0).numpy()
    return found


def _composed(
    values: Stored,
    white: int | None,
    scale: Scale,
    *,
    alpha: bool,
    inverted: bool = False,
    multiplied: bool = False,
    opacity: Pixels | None = None,
) -> Image.Image:
    """Return grey or RGB, and over white where there is transparency, of values [H, W, C].

    `multiplied`: the colours are multiplied by their opacity already, so that white is only added.
    """
    colours = eight_bits(values[..., : values.shape[2] - alpha], white, scale)
    colours = 255 - colours if inverted else colours
    image = Image.fromarray(np.ascontiguousarray(colours.squeeze(2) if colours.shape[2] == 1 else colours[..., :3]))
    if not alpha:
        return image
    if opacity is None:
        opacity = eight_bits(values[..., -1], white, scale, opacity=True)
    if multiplied:
        added = np.atleast_3d(np.asarray(image)).astype(np.int64) + (255 - opacity.astype(np.int64))[..., None]
        return Image.fromarray(added.clip(0, 255).astype(np.uint8).squeeze(2 if image.mode == "L" else ()))
    return Image.composite(image, Image.new(image.mode, image.size, "white"), Image.fromarray(opacity))


def _decode_tiff(name: str, data: bytearray, channels: int, scale: Scale) -> Tensor:
    """Decode a TIFF whose layout Pillow does not read."""
    pages = read_pages(data, first_only=channels in {1, 3})
    if channels in {1, 3}:
        pixels = _grey_or_rgb_of(name, pages[0], channels, scale)
    else:
        pixels = np.concatenate([_stored_bands(page, scale) for page in pages], axis=2)
        _check_bands(name, pixels.shape[2], channels)
    return torch.from_numpy(np.array(pixels, dtype=np.uint8, order="C")).permute(2, 0, 1)


def _stored_bands(page: Page, scale: Scale) -> Pixels:
    """Return all bands of a page, [H, W, C]."""
    pixels = eight_bits(page.values, page.white, scale)
    return 255 - pixels if page.inverted else pixels


def _grey_or_rgb_of(name: str, page: Page, channels: int, scale: Scale) -> Pixels:
    """Return [H, W, channels] of a page: its colours over white where it is transparent, as Pillow converts them."""
    colours = page.values.shape[2] - page.alpha
    if colours not in {1, 3} or (colours == 3 and not page.colours and channels == 1):
        _check_bands(name, page.values.shape[2], channels)
    image = _composed(
        page.values, page.white, scale, alpha=page.alpha, inverted=page.inverted, multiplied=page.multiplied
    )
    return np.atleast_3d(np.asarray(image.convert("L" if channels == 1 else "RGB")))


def _check_bands(name: str, found: int, channels: int) -> None:
    """Refuse another number of bands than asked for."""
    if found != channels:
        raise OtherChannels(name, f"has {found} channel{'s' * (found != 1)}, {channels} are asked for")


def _decode_array(name: str, data: bytearray, channels: int, scale: Scale) -> Tensor:
    """Decode a .npy file: the header is read by NumPy's own reader and must agree with the file's size."""
    stream = io.BytesIO(memoryview(data)[:LONGEST_HEADER])
    shape, fortran, dtype = array_header(stream)
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
        raise OtherChannels(name, f"has shape {shape}, {channels} channels first or last are asked for")
    pixels = np.array(eight_bits(pixels, None, scale), dtype=np.uint8, order="C")  # [H, W, C], a writable copy
    return torch.from_numpy(pixels).permute(2, 0, 1)


def _grey_or_rgb(image: Image.Image, channels: int, scale: Scale, form: str | None) -> Pixels:
    """Return [H, W] (channels 1) or [H, W, 3] of any Pillow mode."""
    mode = "L" if channels == 1 else "RGB"
    deep = image.mode.startswith("I") or image.mode == "F"
    transparent = not deep and image.has_transparency_data  # refuses a palette image without its palette
    if is_large(image) and not (image.mode == "F" and isinstance(scale, ByType)):  # which looks at all of an image
        return _in_strips(image, channels, scale, form)
    if deep:
        image = Image.fromarray(_deep(image, scale, form))
    elif transparent:
        front = image.convert("RGBA")
        image = Image.new("RGBA", front.size, "white")
        image.alpha_composite(front)
    return np.asarray(image if image.mode == mode else image.convert(mode))


def _in_strips(image: Image.Image, channels: int, scale: Scale, form: str | None) -> Pixels:
    """Return what `_grey_or_rgb` does of a large image, converted a few rows at a time."""
    pixels = np.empty((image.height, image.width, channels), np.uint8)
    rows = rows_at_a_time(image.width)
    for top in range(0, image.height, rows):
        strip = image.crop((0, top, image.width, min(top + rows, image.height)))
        pixels[top : top + rows] = np.atleast_3d(_grey_or_rgb(strip, channels, scale, form))
    return pixels


def _bands(name: str, data: bytearray, image: Image.Image, channels: int, scale: Scale) -> Pixels:
    """Return [H, W, channels]: the bands of every page side by side, colours as stored."""
    form, deep = image.format, _deep_png(data)
    if deep is not None:
        _check_bands(name, deep.shape[2], channels)
        return turned(eight_bits(deep, None, scale), orientation(image))
    pages = [np.atleast_3d(_deep(page, scale, form)) for page in ImageSequence.Iterator(image)]  # each [H, W, bands]
    _check_bands(name, sum(page.shape[2] for page in pages), channels)
    pixels = np.concatenate(pages, axis=2)
    return pixels if form == "TIFF" else turned(pixels, orientation(image))  # Pillow turns TIFFs itself


def _deep(image: Image.Image, scale: Scale, form: str | None) -> Pixels:
    """Return pixels of any depth as uint8."""
    values = np.asarray(image)
    if image.mode == "I" and form != "TIFF":
        values = values.astype(np.uint16)  # Pillow's way to give a PPM, or older ones a PNG, of 16 bits
    if form not in {"PPM", "JPEG2000"} or values.dtype != np.uint16:
        return eight_bits(values, None, scale)
    if isinstance(scale, ValueRanges) and scale.is_given:  # Pillow has scaled them to 16 bits
        raise ValueError(f"a {form} file says itself what is white in it: leave {scale.option} away, or convert it")
    return BY_TYPE.pixels(values, None)


def said(error: Exception) -> str:
    """Return an error's text, or its name where it has none."""
    return str(error) or type(error).__name__
