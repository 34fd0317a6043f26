"""TIFF by its tags: which files Pillow reads right, and the others through tifffile (an extra).

Pillow scrambles planes of 16-bit colours, leaves 16-bit white-is-zero images negative, and does not know most numbers
of bands (2, 5, 6, ...), 12 bits, unsigned 32 bits or floats of several bands, takes compressed big-endian values of 32
bits for little-endian ones, and does not know grey that is multiplied by its opacity. Tags: TIFF 6.0 (Adobe 1992),
section 8.
"""

from __future__ import annotations

import io
import logging
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL.TiffImagePlugin import COMPRESSION_INFO, ImageFileDirectory_v2

from mst.errors import MissingExtra
from mst.runtime.images import MAX_PIXELS, check_memory, quiet_pillow, turned

MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
BLACK_IS_ZERO, WHITE_IS_ZERO, RGB, PALETTE, CMYK = 1, 0, 2, 3, 5
UNSIGNED, SIGNED, FLOAT = 1, 2, 3
WEBP = 50001
"""A compression that Pillow names, and that its wheels' libtiff lacks."""
MULTIPLIED, ALPHA = 1, {1, 2}
"""Values of ExtraSamples: transparency by which colours are multiplied already, and transparency of any kind."""


class Page(NamedTuple):
    """One page of a TIFF.

    Attributes:
        values: as stored, upright, [H, W, C].
        white: what white is: 2^bits - 1 for whole numbers of less than 8 or of 12 bits and the like; None = the type's.
        colours: whether its first three bands are red, green and blue.
        alpha: whether its last band is transparency.
        multiplied: whether its colours are multiplied by that already.
        inverted: whether white is zero.
    """

    values: npt.NDArray[Any]
    white: int | None
    colours: bool
    alpha: bool
    inverted: bool
    multiplied: bool = False


def pillow_reads(data: bytes | bytearray) -> bool:
    """Whether Pillow can be trusted with all pages of a TIFF; other files and damaged directories are its to judge."""
    if not data.startswith(MAGIC):
        return True
    if data.startswith(MAGIC[3]):  # a big-endian BigTIFF, which Pillow does not know
        return False
    stream = io.BytesIO(data)
    header = stream.read(8)
    if header[2:4] in {b"+\0", b"\0+"}:
        header += stream.read(8)
    try:
        directory = ImageFileDirectory_v2(header)
        seen: set[int] = set()
        while directory.next and directory.next not in seen and len(seen) < 64:
            seen.add(directory.next)
            stream.seek(directory.next)
            with quiet_pillow:  # a tag is decoded when it is asked for
                directory.load(stream)
                if not _is_plain(directory, big_endian=data.startswith(b"MM")):
                    return False
    except Exception:  # whatever damaged bytes raise
        return True
    return True


def _is_plain(tags: Any, *, big_endian: bool) -> bool:
    compression = int(tags.get(259, 1))
    if compression not in COMPRESSION_INFO.keys() - {WEBP}:
        return False
    samples, planar = int(tags.get(277, 1)), int(tags.get(284, 1))
    bits, kinds = set(_numbers(tags.get(258, 1))), set(_numbers(tags.get(339, UNSIGNED)))
    photometric = int(tags.get(262, BLACK_IS_ZERO))
    if len(bits) != 1 or len(kinds) != 1:
        return False
    depth, kind = bits.pop(), kinds.pop()
    if kind == UNSIGNED and depth in {1, 2, 4, 8}:
        grey = photometric in {BLACK_IS_ZERO, WHITE_IS_ZERO}
        extra = set(_numbers(tags.get(338, 0)))
        transparent = samples == 2 and grey and depth == 8 and extra <= ALPHA - {MULTIPLIED}
        odd = samples == 4 and planar == 2 and photometric == RGB and not extra <= ALPHA - {MULTIPLIED}
        colours = samples in {3, 4} and not grey and not odd
        return samples == 1 or transparent or colours
    if kind == UNSIGNED and depth == 16:
        contiguous_colours = photometric == RGB and samples in {3, 4} and planar == 1 and not have_tifffile()
        return (samples == 1 and photometric == BLACK_IS_ZERO) or contiguous_colours
    swapped = big_endian and compression != 1  # Pillow takes libtiff's values, in the machine's order, for the file's
    one = samples == 1 and photometric == BLACK_IS_ZERO
    return one and not swapped and (kind, depth) in {(SIGNED, 32), (FLOAT, 32)}


def depth_of(image: Any) -> int:
    """Return the bits of a value in a TIFF that Pillow has opened, the most of its bands."""
    return max(_numbers(image.tag_v2.get(258, 1)))


def mend_palette(image: Any) -> None:
    """Give a TIFF of a palette its colours where they are written in 8 bits, as old programs do; Pillow takes 16.

    A palette whose largest value is below 256 is such a one (libtiff's rule, tif_getimage.c).
    """
    colours = image.tag_v2.get(320, ())
    if not colours or max(colours) >= 256:
        return
    image.load()
    count = len(colours) // 3
    image.putpalette(bytes(colours[part * count + place] for place in range(count) for part in range(3)))


def read_pages(data: bytes | bytearray, *, first_only: bool) -> list[Page]:
    """Return the pages of a TIFF, read by tifffile.

    Raises:
        MissingExtra: tifffile is not installed.
        ValueError: a layout that has no pixels as here, or far more of them than the file's bytes are worth.
    """
    try:
        import tifffile
    except ImportError as error:
        raise MissingExtra("tifffile (for this layout of TIFF)", "tiff") from error
    logging.getLogger("tifffile").addHandler(logging.NullHandler())  # its remarks on damaged tags stay unsaid
    pages: list[Page] = []
    taken = 0
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        every: Any = file.pages
        for page in every:
            height, width = int(page.imagelength), int(page.imagewidth)
            if height * width > MAX_PIXELS:
                raise ValueError(f"claims {width}x{height} pixels, at most {MAX_PIXELS} are decoded")
            taken += height * width * int(page.samplesperpixel) * max(1, int(page.bitspersample) // 8)
            check_memory(taken, len(data))
            pages.append(_page(page))
            if first_only:
                break
    return pages


def _page(page: Any) -> Page:
    """Return one page [H, W, C]."""
    values = np.asarray(page.asarray())
    if page.axes == "YX":
        values = values[..., None]
    elif page.axes == "SYX":
        values = values.transpose(1, 2, 0)
    elif page.axes != "YXS":
        raise ValueError(f"a TIFF page of axes {page.axes}: only rows, columns and bands are understood")
    photometric, bits = int(page.photometric), int(page.bitspersample)
    if photometric not in {BLACK_IS_ZERO, WHITE_IS_ZERO, RGB}:
        raise ValueError(f"a TIFF of photometric interpretation {page.photometric!s} and {bits} bits is not understood")
    unsigned = values.dtype.kind == "u"
    white = 2**bits - 1 if unsigned and bits < 8 * values.dtype.itemsize else None
    inverted = photometric == WHITE_IS_ZERO
    if inverted and not unsigned:
        raise ValueError(f"white-is-zero {values.dtype} pixels: what is black is not known")
    extra = [int(kind) for kind in page.extrasamples]
    alpha = bool(extra) and extra[-1] in ALPHA and values.shape[2] in {2, 4}
    tag = page.tags.get(274)
    values = turned(values, int(tag.value) if tag is not None else 1)
    return Page(values, white, photometric == RGB, alpha, inverted, alpha and extra[-1] == MULTIPLIED)


def have_tifffile() -> bool:
    """Return whether the extra is installed."""
    from importlib.util import find_spec

    return find_spec("tifffile") is not None


def _numbers(value: Any) -> tuple[int, ...]:
    return tuple(map(int, value)) if isinstance(value, tuple | list) else (int(value),)
