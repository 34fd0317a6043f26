"""Which way up annotations are: images are turned by their EXIF orientation, their annotations may not have been.

Tools that show an image as it was stored write annotations of the stored pixels, tools that turn it first write those
of the displayed ones. Where the sides change places (5 to 8) the size beside the annotations tells which; where they do
not (2 to 4, and squares) nothing in the file does. Source of the numbers: Exif 2.32, tag 0x0112. Masks turn by
`mst.runtime.images.turned`. Letters: H W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from mst.evaluate.common.boxes import Box
from mst.runtime.images import Header

Frame = Literal["displayed", "stored"]
"""What annotations are of: the image as a viewer shows it, or its pixels as they lie in the file."""


def frame_of(header: Header, size: tuple[int, int]) -> Frame | Literal["either"] | None:
    """Return what annotations are of, by the size that they name; either = it does not tell; None = neither fits.

    Args:
        header: of the image.
        size: (H, W) beside the annotations, or of the mask.
    """
    if size not in {header.upright, header.stored}:
        return None
    if header.orientation == 1:
        return "displayed"
    if header.upright == header.stored:
        return "either"
    return "displayed" if size == header.upright else "stored"


def agreed_frame(told: Sequence[Frame | Literal["either"] | None]) -> Frame:
    """Return the frame of those images that do not tell: that of most of the others; displayed where no image does."""
    return "stored" if told.count("stored") > told.count("displayed") else "displayed"


def upright_point(x: float, y: float, header: Header) -> tuple[float, float]:
    """Return where a point of the stored image lies in the upright one.

    Args:
        x: from the left edge, in pixels.
        y: from the upper edge.
        header: of the image.
    """
    height, width = header.stored
    turned = {
        2: (width - x, y),
        3: (width - x, height - y),
        4: (x, height - y),
        5: (y, x),
        6: (height - y, x),
        7: (height - y, width - x),
        8: (y, width - x),
    }
    return turned.get(header.orientation, (x, y))


def upright_box(box: Box, header: Header) -> Box:
    """Return a box (x0, y0, x1, y1) of the stored image in the upright one."""
    (xa, ya), (xb, yb) = upright_point(box[0], box[1], header), upright_point(box[2], box[3], header)
    return min(xa, xb), min(ya, yb), max(xa, xb), max(ya, yb)
