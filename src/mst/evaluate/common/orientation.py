"""Which way up annotations are: images are turned by their EXIF orientation, their annotations may not have been.

A tool that shows an image as it is stored writes annotations of the stored pixels; a tool that turns it first writes
annotations of the displayed ones. If the orientation swaps height and width (5 to 8), the size beside the annotations
tells which it was. Otherwise (2 to 4, and squares) nothing in the file tells. Source of the numbers: Exif 2.32, tag
0x0112. Masks are turned by `mst.runtime.images.turned`. Letters: H W pixels.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

from mst.data.background import read_in_threads
from mst.evaluate.common.boxes import Box
from mst.runtime.images import Header, image_header
from mst.runtime.logging import warn
from mst.runtime.names import shown

THREADS = 4
"""Threads that read headers."""
Frame = Literal["displayed", "stored"]
"""What annotations are of: the image as a viewer shows it, or its pixels as they lie in the file."""


def frame_of(header: Header, size: tuple[int, int]) -> Frame | Literal["either"] | None:
    """Return which image annotations belong to, judged by the size that they state.

    "either" = the size fits both; None = it fits neither.

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
    """Return the frame for images whose size does not tell: that of most other images; "displayed" if none tells."""
    return "stored" if told.count("stored") > told.count("displayed") else "displayed"


def mask_frames(
    pairs: Sequence[tuple[Path, Path]], size_of: Callable[[Path], tuple[int, int]], said: Frame | None
) -> tuple[dict[Path, Header], dict[tuple[Path, Path], Frame]]:
    """Return the headers of images that EXIF turns, and what their masks are of; one warning says what is assumed.

    Args:
        pairs: images and their masks.
        size_of: returns (H, W) of a mask.
        said: what all masks are of; None = as their sizes say.
    """
    pairs = list(dict.fromkeys(pairs))
    images = list(dict.fromkeys(image for image, _ in pairs))
    found = zip(images, read_in_threads(_turned_header, images, THREADS), strict=True)
    headers = {image: header for image, header in found if header is not None}
    told: dict[tuple[Path, Path], Frame | Literal["either"] | None] = {}
    for image, mask in pairs:
        if image not in headers:
            continue
        try:
            told[image, mask] = frame_of(headers[image], size_of(mask))
        except (OSError, ValueError, SyntaxError):  # the reader says what is wrong with it
            told[image, mask] = None
    agreed = said or agreed_frame(list(told.values()))
    frames: dict[tuple[Path, Path], Frame] = {}
    for pair, frame in told.items():
        if frame is not None:
            frames[pair] = said or agreed if frame == "either" or said else frame
    if frames and said is None:
        counts = " and ".join(f"{count} as {frame}" for frame, count in sorted(Counter(frames.values()).items()))
        unsure = list(told.values()).count("either")
        guess = f" (of {unsure} the size does not tell, they are taken as {agreed})" if unsure else ""
        warn(
            f"EXIF turns {len(headers)} of {len(images)} images, the first: {shown(next(iter(frames))[0])}; their "
            f"masks are taken as of the image {counts}{guess}: --annotations displayed or stored if that is wrong"
        )
    return headers, frames


def _turned_header(image: Path) -> Header | None:
    try:
        header = image_header(image)
    except (OSError, ValueError, SyntaxError):  # an array, or a file that the decoder will judge
        return None
    return None if header.orientation == 1 else header


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
