"""COCO's two forms of an object mask, polygons and run lengths, checked and turned into pixels.

Source: the COCO data format (cocodataset.org, "Data format"); polygons are filled by COCO's own rasteriser, so that
areas and IoU are those of the published metrics. Differs: run lengths are decoded here, with every length checked,
because compiled decoders may read and write outside their arrays when a string is damaged.
Letters: H W pixels.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mst.errors import MissingExtra

OUTSIDE = 2.0
"""Pixels by which a box or polygon may reach out of its image: rounding of resized annotations, not mistakes."""

Polygons = Sequence[Sequence[float]]


class BadMask(ValueError):
    """A segmentation that gives no mask; the message says why, without file and record."""


class RunLengths(NamedTuple):
    """A mask as runs of 0, 1, 0, ... down the columns, left to right; their sum is H * W."""

    size: tuple[int, int]
    counts: NDArray[np.int64]


class PolygonMask(NamedTuple):
    """A mask as one or more closed outlines (x0, y0, x1, y1, ...) of an image (H, W)."""

    size: tuple[int, int]
    polygons: Polygons


Segmentation = RunLengths | PolygonMask


def is_number(value: Any) -> bool:
    """Whether a JSON value is a finite number; `math.isfinite` takes no whole number beyond a float's range."""
    return type(value) in {int, float} and abs(value) <= sys.float_info.max


def read_segmentation(value: Any, size: tuple[int, int]) -> Segmentation:
    """Check an annotation's `segmentation` against its image (H, W).

    Raises:
        BadMask: neither polygons nor run lengths, of another size, or damaged.
    """
    if isinstance(value, dict):
        return _run_lengths(value, size)
    if not isinstance(value, list) or not value:
        raise BadMask(f"segmentation must be polygons or run lengths, not {_short(value)}")
    for polygon in value:
        _check_polygon(polygon, size)
    return PolygonMask(size, value)


def mask_of(segmentation: Segmentation) -> NDArray[np.bool_]:
    """Return the pixels, bool [H, W].

    Raises:
        MissingExtra: polygons need the rasteriser of the extra `detection`.
    """
    if isinstance(segmentation, PolygonMask):
        coco = coco_mask_library()
        height, width = segmentation.size
        merged = coco.merge(coco.frPyObjects([list(map(float, p)) for p in segmentation.polygons], height, width))
        return np.asarray(coco.decode(merged), dtype=np.bool_)
    height, width = segmentation.size
    values = np.arange(len(segmentation.counts)) % 2 == 1
    columns: NDArray[np.bool_] = np.repeat(values, segmentation.counts).reshape(width, height)
    return columns.T


def run_lengths_of(mask: NDArray[np.bool_]) -> RunLengths:
    """Return the runs of a mask [H, W]; the inverse of `mask_of`."""
    flat = mask.T.reshape(-1)
    changes = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    edges = np.concatenate(([0], changes, [flat.size]))
    counts = np.diff(edges).astype(np.int64)
    if flat.size and flat[0]:
        counts = np.concatenate((np.zeros(1, np.int64), counts))
    return RunLengths((mask.shape[0], mask.shape[1]), counts)


def decode_counts(text: str) -> list[int]:
    """Return the run lengths of COCO's compressed string: 5 bits and a "more" bit per character, signed, and from
    the fourth on each is the difference to the run before last.

    Raises:
        BadMask: a character outside the code, or an end in the middle of a number.
    """
    counts: list[int] = []
    value, shift = 0, 0
    for character in text:
        code = ord(character) - 48
        if not 0 <= code < 64:
            raise BadMask(f"run lengths hold the character {character!r}, which is not of COCO's code")
        value |= (code & 0x1F) << shift
        shift += 5
        if shift > 60:
            raise BadMask("run lengths hold a number above 60 bits")
        if not code & 0x20:
            if code & 0x10:
                value -= 1 << shift
            counts.append(value + counts[-2] if len(counts) > 2 else value)
            value, shift = 0, 0
    if shift:
        raise BadMask("run lengths end in the middle of a number")
    return counts


def coco_mask_library() -> Any:
    """Return the module with COCO's mask functions.

    Raises:
        MissingExtra: it is not installed.
    """
    try:
        from faster_coco_eval.core import mask
    except ImportError as error:
        raise MissingExtra("faster-coco-eval", "detection") from error
    return mask


def _run_lengths(value: dict[str, Any], size: tuple[int, int]) -> RunLengths:
    stated, counts = value.get("size"), value.get("counts")
    if list(size) != stated:
        raise BadMask(f"run lengths are of size {stated}, the image is {list(size)} (H, W)")
    if isinstance(counts, str):
        runs = decode_counts(counts)
    elif isinstance(counts, list) and all(type(count) is int for count in counts):
        runs = counts
    else:
        raise BadMask(f"run lengths must be a string or a list of whole numbers, not {_short(counts)}")
    pixels = size[0] * size[1]
    if min(runs, default=0) < 0:
        raise BadMask(f"run lengths hold the negative number {min(runs)}")
    if sum(runs) != pixels:
        raise BadMask(f"run lengths cover {sum(runs)} pixels, the image {size[0]}x{size[1]} has {pixels}")
    return RunLengths(size, np.asarray(runs, dtype=np.int64))


def _check_polygon(polygon: Any, size: tuple[int, int]) -> None:
    if not isinstance(polygon, list) or len(polygon) < 6 or len(polygon) % 2:
        raise BadMask(f"a polygon needs at least three points x, y, not {_short(polygon)}")
    if not all(map(is_number, polygon)):
        raise BadMask(f"a polygon holds something that is no number: {_short(polygon)}")
    for numbers, side, axis in ((polygon[::2], size[1], "x"), (polygon[1::2], size[0], "y")):
        if min(numbers) < -OUTSIDE or max(numbers) > side + OUTSIDE:
            raise BadMask(f"a polygon reaches outside the image: {axis} {min(numbers)}..{max(numbers)} of 0..{side}")


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
