"""The one place where the package opens image files: which formats, how large, and which way up."""

from __future__ import annotations

import ctypes
import importlib
import io
import logging
import os
import re
import stat
import struct
import threading
import warnings
import zlib
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from PIL import ExifTags, Image, UnidentifiedImageError

if TYPE_CHECKING:
    import numpy.typing as npt

MAX_PIXELS = 178_956_970
"""An image that claims more pixels is refused before memory is taken. Pillow, too, calls it a decompression bomb."""

MAX_BYTES = 1 << 31
"""Larger files are refused before memory is taken; four bands of 16 bits of `MAX_PIXELS` are smaller."""

FREE_BYTES = 1 << 28
"""Memory that every file may take; for more, `MOST_PER_BYTE` is the limit."""

MOST_PER_BYTE = 1 << 13
"""Most bytes of memory for a byte of a file: deflate expands up to 1,032 times, and a byte of that takes up to 4."""

FORMATS = (
    *("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF", "PPM", "AVIF", "JPEG2000"),
    *("QOI", "SGI", "PCX", "PSD", "DDS", "SUN", "TGA"),
)
"""Formats that are read, recognised by content. PostScript is not among them: Pillow runs another program for it."""

_TGA_END = b"TRUEVISION-XFILE."
"""Near the end of a TGA of version 2.0. Older ones say nothing of themselves: Pillow takes other files for them."""
_MODULES = {"WEBP": "WebP", "AVIF": "Avif", "JPEG2000": "Jpeg2K", "PNG": "Png", "PPM": "Ppm"}
_TURNS = MappingProxyType(
    {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_270,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_90,
    }
)
"""EXIF orientation (Exif 2.32, tag 0x0112) -> the operation that turns the image upright."""

PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
_PIXEL_CHUNKS = frozenset({b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND", b"eXIf"})
_TURNING = {b"eXIf", b"zTXt", b"tEXt", b"iTXt"}
_ORIENTING_TEXT = re.compile(rb"XML:com\.adobe\.xmp\0|Raw profile type (exif|APP1|xmp)\0")
_LONGEST_TEXT = 1 << 20
_PIECE = 1 << 20


class Header(NamedTuple):
    """What a file states about its image, known before any pixel is decoded.

    Attributes:
        stored: (H, W) of the pixels in the file.
        upright: (H, W) of the image that `upright` and the decoder return.
        orientation: of EXIF or XMP, 1 to 8; 1 = as stored.
        mode: Pillow's name for its channels.
        form: one of `FORMATS`.
    """

    stored: tuple[int, int]
    upright: tuple[int, int]
    orientation: int
    mode: str
    form: str


class _QuietPillow:
    """Silences Pillow's warnings about damaged metadata while any thread decodes.

    One narrow filter is added and removed; `warnings.catch_warnings` would replace the filters of all threads.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._users = 0

    def __enter__(self) -> None:
        with self._lock:
            self._users += 1
            warnings.filterwarnings("ignore", module=r"PIL\.")  # does nothing where it is the first filter already

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._users -= 1
            if not self._users:
                filters = cast("list[object]", warnings.filters)
                filters[:] = [entry for entry in filters if entry != _PILLOW_FILTER]


_PILLOW_FILTER = ("ignore", None, Warning, re.compile(r"PIL\."), 0)  # as `warnings.filterwarnings` writes it
quiet_pillow = _QuietPillow()


def read_regular(path: str | bytes | Path) -> bytearray:
    """Return the content of a regular file; never waits for a pipe, a device or a socket.

    Raises:
        OSError: no such file, no permission, no regular file, or larger than `MAX_BYTES`.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(descriptor, "rb", buffering=0) as file:
        found = os.fstat(descriptor)
        if stat.S_ISDIR(found.st_mode):
            raise IsADirectoryError("is a directory, not a file")
        if not stat.S_ISREG(found.st_mode):
            raise OSError("a pipe, a device or a socket, not a file")
        if found.st_size > MAX_BYTES:
            raise OSError(f"has {found.st_size} bytes, at most {MAX_BYTES} are read")
        data = bytearray(found.st_size)
        view, at = memoryview(data), 0
        while at < len(data) and (count := file.readinto(view[at:])):
            at += count
    view.release()
    del data[at:]
    return data


def open_image(source: str | Path | bytes | bytearray, *, formats: tuple[str, ...] = FORMATS) -> Image.Image:
    """Open an image: its header is read and checked, no pixel is decoded yet.

    The format is that of the content, whatever the name says. Damage outside the pixels (a large or damaged profile or
    text, a wrong checksum of an ancillary chunk) does not matter. The memory of decoding is limited here: to
    `MAX_PIXELS`, and above `FREE_BYTES` to `MOST_PER_BYTE` bytes for each byte of the file.

    Args:
        source: a path, or the content of a file.
        formats: some of `FORMATS`.

    Raises:
        OSError: no such file, no regular file (`read_regular`), or not of these formats.
        ValueError: it is damaged, claims too many pixels, or far more than its bytes can hold.
    """
    data = read_regular(source) if isinstance(source, str | Path) else source
    if data.startswith(b"RIFF"):
        _check_claim(_webp_size(data), len(data), 15)  # Pillow takes memory for the canvas when it opens the file
    if data.startswith(PNG_MAGIC):
        data = without_remarks(data)
    available = _available() if _TGA_END in data[-32:] else _available() - {"TGA"}
    with quiet_pillow:
        try:
            image = Image.open(io.BytesIO(data), formats=[form for form in formats if form in available])
        except Image.DecompressionBombError as error:
            raise ValueError(f"claims too many pixels, at most {MAX_PIXELS} are decoded") from error
        except UnidentifiedImageError as error:  # its text has the address of the bytes in memory
            raise OSError("not an image in a known format") from error
        except (OSError, MemoryError):
            raise
        except Exception as error:  # a reader of headers may stumble over damaged bytes in any way
            raise ValueError(f"damaged: {error}") from error
        _check_claim(image.size, len(data), 15 if image.mode in {"RGBA", "LA", "PA"} else 7)
    return image


def image_header(path: str | Path | bytearray) -> Header:
    """Return the size and orientation that a file states.

    Raises:
        OSError, ValueError: as `open_image`.
    """
    data = path if isinstance(path, bytearray) else read_regular(path)
    with open_image(data) as image:
        turn = orientation(image) if _may_turn(data) else 1
        width, height = image.size
        if image.format == "TIFF":  # Pillow turns the size of some, by version
            tags = getattr(image, "tag_v2", {})
            try:
                width, height = int(tags.get(256, width)), int(tags.get(257, height))
            except TypeError as error:
                raise ValueError("damaged: its width or height is not a number") from error
        stored = height, width
        return Header(stored, stored[::-1] if turn >= 5 else stored, turn, image.mode, image.format or "")


def _may_turn(data: bytearray) -> bool:
    """Whether something in a file may say an orientation; of PNGs without it Pillow would decode all pixels to see."""
    if not data.startswith(PNG_MAGIC):
        return True
    return any(keep and bytes(data[start + 4 : start + 8]) in _TURNING for start, _, keep in _chunks(data))


def orientation(image: Image.Image) -> int:
    """Return the orientation of EXIF, or of XMP where EXIF has none: 1 to 8; 1 where there is none or it is damaged."""
    try:
        with quiet_pillow:
            found = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # whatever a damaged tag raises: the pixels are sound
        return 1
    return int(found) if isinstance(found, int) and found in _TURNS else 1


def upright(image: Image.Image) -> Image.Image:
    """Return the decoded image, turned by its orientation."""
    with quiet_pillow:
        image.load()  # PNGs may have their EXIF after the pixels, TIFFs are turned here
        method = _TURNS.get(orientation(image))
        return image if method is None else image.transpose(method)


def turned(values: npt.NDArray[Any], orientation: int) -> npt.NDArray[Any]:
    """Return stored pixels [H, W] or [H, W, C] turned by an orientation from 1 to 8."""
    if 5 <= orientation <= 8:
        values = values.swapaxes(0, 1)
    if orientation in {3, 4, 7, 8}:
        values = values[::-1]
    if orientation in {2, 3, 6, 7}:
        values = values[:, ::-1]
    return values


@cache
def _available() -> frozenset[str]:
    """Return those of `FORMATS` that the installed Pillow reads; silence its log, as its exceptions say the same."""
    for form in FORMATS:
        try:
            importlib.import_module(f"PIL.{_MODULES.get(form, form.title())}ImagePlugin")
        except ImportError:
            continue
    logging.getLogger("PIL").addHandler(logging.NullHandler())
    for library in Path(Image.__file__).parent.with_name("pillow.libs").glob("libtiff*"):  # as in Pillow's wheels
        with suppress(OSError, AttributeError):
            tiff = ctypes.CDLL(str(library))
            tiff.TIFFSetErrorHandler(None)
            tiff.TIFFSetWarningHandler(None)
    return frozenset(form for form in FORMATS if form in Image.OPEN)


def _check_claim(size: tuple[int, int] | None, file_bytes: int, bytes_per_pixel: int) -> None:
    """Refuse a claim that is too large, or too large for the file that makes it."""
    if size is None:
        return
    width, height = size
    if width * height > MAX_PIXELS:
        raise ValueError(f"claims {width}x{height} pixels, at most {MAX_PIXELS} are decoded")
    check_memory(width * height * bytes_per_pixel, file_bytes)


def check_memory(needed: int, file_bytes: int) -> None:
    """Refuse a file that would take far more memory than its size can justify.

    Raises:
        ValueError: more than `FREE_BYTES` and more than `MOST_PER_BYTE` for each byte.
    """
    if needed > max(FREE_BYTES, MOST_PER_BYTE * file_bytes):
        raise ValueError(
            f"claims {needed >> 20} MB of pixels in {file_bytes} bytes, more than any picture: it is not decoded"
        )


def _webp_size(data: bytes | bytearray) -> tuple[int, int] | None:
    """Return (W, H) of a WebP's canvas (RFC 9649), or None where there is none."""
    if len(data) < 30 or data[8:12] != b"WEBP":
        return None
    kind = bytes(data[12:16])
    if kind == b"VP8X":
        return 1 + int.from_bytes(data[24:27], "little"), 1 + int.from_bytes(data[27:30], "little")
    if kind == b"VP8L":
        bits = int.from_bytes(data[21:25], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    return int.from_bytes(data[26:28], "little") & 0x3FFF, int.from_bytes(data[28:30], "little") & 0x3FFF


def without_remarks(data: bytes | bytearray, *, turning: bool = True) -> bytes | bytearray:
    """Return a PNG with only those chunks that matter for its pixels and its orientation.

    Ancillary chunks with a wrong checksum are dropped, as libpng does. Critical chunks stay as they are; the decoder
    judges them. Of an animation the default image stays, which is its first frame.

    Args:
        data: the file.
        turning: whether to keep EXIF.
    """
    kept = [
        (start, end)
        for start, end, keep in _chunks(data)
        if keep and (turning or bytes(data[start + 4 : start + 8]) != b"eXIf")
    ]
    total = sum(end - start for start, end in kept)
    if total + len(PNG_MAGIC) == len(data):
        return data
    return b"".join([PNG_MAGIC, *(memoryview(data)[start:end] for start, end in kept)])


def png_chunk(data: bytes | bytearray, kind: bytes) -> bytes | None:
    """Return the content of the last sound chunk of a kind, or None."""
    found = [(start, end) for start, end, keep in _chunks(data) if keep and bytes(data[start + 4 : start + 8]) == kind]
    return bytes(data[found[-1][0] + 8 : found[-1][1] - 4]) if found else None


def _chunks(data: bytes | bytearray) -> Iterator[tuple[int, int, bool]]:
    """Yield (start, end, whether to keep it) of each chunk of a PNG; what follows a broken one belongs to it."""
    at = len(PNG_MAGIC)
    while at < len(data):
        length, kind = int.from_bytes(data[at : at + 4], "big"), bytes(data[at + 4 : at + 8])
        end = at + 12 + length
        if end > len(data) or not kind.isalpha():
            yield at, len(data), True
            return
        ancillary = bool(kind[0] & 0x20)
        keep = kind in _PIXEL_CHUNKS or not ancillary
        if kind in {b"zTXt", b"tEXt", b"iTXt"}:
            keep = _orients(kind, bytes(data[at + 8 : min(end - 4, at + 8 + _LONGEST_TEXT)]))
        if keep and ancillary:
            (claimed,) = struct.unpack(">I", data[end - 4 : end])
            keep = zlib.crc32(memoryview(data)[at + 4 : end - 4]) == claimed
        yield at, end, keep
        at = end


def is_whole_png(data: bytes | bytearray, row_bytes: int, rows: int) -> bool:
    """Return whether a PNG is undamaged, not interlaced, and holds nothing but pixels.

    Checked are the order and checksums of its chunks, and that the pixels inflate to the right number of rows, each
    with a filter that exists (ISO/IEC 15948, sections 5.6, 9.2 and 10.1). It takes little memory. Such a file can be
    given to a decoder that fails badly on damaged ones.
    """
    view, kinds = memoryview(data), []
    inflate, found = zlib.decompressobj(), 0
    for start, end, _ in _chunks(data):
        kinds.append(bytes(view[start + 4 : start + 8]))
        if end - start < 12 or zlib.crc32(view[start + 4 : end - 4]) != int.from_bytes(view[end - 4 : end], "big"):
            return False
        for at in range(start + 8, end - 4, _PIECE) if kinds[-1] == b"IDAT" else ():
            part: bytes | memoryview = view[at : min(at + _PIECE, end - 4)]
            while part:
                try:
                    pixels = inflate.decompress(part, 16 * _PIECE)
                except zlib.error:
                    return False
                if max(pixels[-found % row_bytes :: row_bytes], default=0) > 4 or inflate.unused_data:
                    return False
                found, part = found + len(pixels), inflate.unconsumed_tail
                if found > rows * row_bytes:
                    return False
    plain = kinds == [b"IHDR", *[b"IDAT"] * (len(kinds) - 2), b"IEND"] and len(data) > 33
    return (
        plain
        and bytes(data[8:12]) == b"\0\0\0\r"
        and not any(data[26:29])
        and inflate.eof
        and found == rows * row_bytes
    )


def _orients(kind: bytes, text: bytes) -> bool:
    """Return whether a text chunk may hold an orientation, and is small."""
    if not _ORIENTING_TEXT.match(text) or len(text) >= _LONGEST_TEXT:
        return False
    packed = text.partition(b"\0")[2]
    if kind == b"iTXt":
        compressed = packed[:1] == b"\1"
        packed = packed[2:].split(b"\0", 2)[-1]
    else:
        compressed, packed = kind == b"zTXt", packed[1:]
    if not compressed:
        return True
    inflate = zlib.decompressobj()
    try:
        inflate.decompress(packed, _LONGEST_TEXT)
    except zlib.error:
        return False
    return not inflate.unconsumed_tail
