"""COCO's two forms of an object mask, polygons and run lengths, checked and turned into pixels.

Source: the COCO data format (cocodataset.org, "Data format"); polygons are filled by COCO's own rasteriser, so that
areas and IoU are those of the published metrics. Differs: run lengths are decoded here, with every length checked,
because compiled decoders may read and write outside their arrays when a string is damaged.
Letters: H W pixels.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mst.errors import MissingExtra
from mst.evaluate.common.boxes import Box
from mst.evaluate.common.orientation import upright_point
from mst.runtime.images import Header, turned

OUTSIDE = 2.0
"""Pixels by which a box or polygon may reach out of its image: rounding in resized annotations, no mistake."""

Polygons = Sequence[Sequence[float]]


LEAST_INSIDE = 0.5
"""Share of a box or polygon that must lie inside its image: with less it is left out, with more it is clipped."""
Note = Callable[[str, str], None]
"""Called for a polygon beside good ones: with "bad polygon" if it is left out, "polygon" if clipped, and the reason."""


class BadMask(ValueError):
    """A segmentation that gives no mask. The message says why but names no file and record; `kind` has two words."""

    def __init__(self, message: str, kind: str = "bad mask") -> None:
        super().__init__(message)
        self.kind = kind


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


def no_mask(value: Any) -> bool:
    """Whether a `segmentation` says that there is none: absent, null, [], [[]] or {}."""
    return not value or (isinstance(value, list) and all(part == [] for part in value))


def read_segmentation(value: Any, size: tuple[int, int], *, note: Note | None = None) -> Segmentation:
    """Check an annotation's `segmentation` against its image (H, W).

    Args:
        value: of JSON: polygons, a single one without the outer list, or run lengths.
        size: of the image.
        note: called for each polygon that is left out or clipped; None = a bad polygon spoils the whole mask.

    Raises:
        BadMask: neither polygons nor run lengths, of another size, or damaged.
    """
    if isinstance(value, dict):
        return _run_lengths(value, size)
    if not isinstance(value, list) or not value:
        raise BadMask(f"segmentation must be polygons or run lengths, not {short(value)}")
    polygons = [value] if all(map(is_number, value)) else value
    if note is None:
        for polygon in polygons:
            _check_polygon(polygon, size)
        return PolygonMask(size, polygons)
    return PolygonMask(size, _usable(polygons, size, note))


def _usable(polygons: Sequence[Any], size: tuple[int, int], note: Note) -> Polygons:
    """Return the good polygons; call `note` for the others."""
    kept: list[Sequence[float]] = []
    problems: list[BadMask] = []
    for polygon in polygons:
        try:
            _check_polygon(polygon, size)
        except BadMask as problem:
            if not isinstance(problem, OutsideImage) or problem.share < LEAST_INSIDE:
                problems.append(problem)
                continue
            note("polygon", str(problem))
        kept.append(polygon)
    if not kept:
        raise problems[0]
    for bad in problems:
        note("bad polygon", str(bad))
    return kept


def mask_box(segmentation: Segmentation) -> Box:
    """Return the box (x0, y0, x1, y1) around a mask, inside its image; an empty mask has a box without area."""
    height, width = segmentation.size
    if isinstance(segmentation, PolygonMask):
        xs, ys = ([n for p in segmentation.polygons for n in p[axis::2]] for axis in (0, 1))
        x0, x1 = (min(max(float(x), 0.0), float(width)) for x in (min(xs), max(xs)))
        y0, y1 = (min(max(float(y), 0.0), float(height)) for y in (min(ys), max(ys)))
        return x0, y0, x1, y1
    mask = mask_of(segmentation)
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(rows):
        return 0.0, 0.0, 0.0, 0.0
    return float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1)


def mask_area(segmentation: Segmentation) -> float:
    """Return the area of a mask in pixels; for polygons, the sum of their areas."""
    if isinstance(segmentation, RunLengths):
        return float(segmentation.counts[1::2].sum())
    total = 0.0
    for polygon in segmentation.polygons:
        x, y = np.asarray(polygon[::2], dtype=np.float64), np.asarray(polygon[1::2], dtype=np.float64)
        total += abs(float(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1)))) / 2
    return total


def turned_mask(segmentation: Segmentation, header: Header) -> Segmentation:
    """Return a mask of the stored image turned as the upright image is."""
    if isinstance(segmentation, RunLengths):
        return run_lengths_of(turned(mask_of(segmentation), header.orientation))
    points = (
        [upright_point(float(x), float(y), header) for x, y in zip(p[::2], p[1::2], strict=True)]
        for p in segmentation.polygons
    )
    return PolygonMask(header.upright, [[number for point in polygon for number in point] for polygon in points])


def kept_share(box: Box, size: tuple[int, int]) -> float:
    """Return the share of a box's area that lies inside an image (H, W); 0 for a box without area."""
    (x0, y0, x1, y1), (height, width) = box, size
    sides = min(x1, width) - max(x0, 0), min(y1, height) - max(y0, 0)
    if min(sides) <= 0 or min(x1 - x0, y1 - y0) <= 0:
        return 0.0
    return (sides[0] / (x1 - x0)) * (sides[1] / (y1 - y0))


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
        message = f"run lengths are of size {short(stated)}, the image is {list(size)} (H, W)"
        raise BadMask(message, "mask of another size")
    if isinstance(counts, str | bytes):
        runs = decode_counts(_text(counts))
    elif isinstance(counts, list) and all(is_number(count) and count == int(count) for count in counts):
        runs = list(map(int, counts))
    else:
        raise BadMask(f"run lengths must be a string or a list of whole numbers, not {short(counts)}")
    pixels = size[0] * size[1]
    if min(runs, default=0) < 0:
        raise BadMask(f"run lengths hold the negative number {min(runs)}")
    if sum(runs) != pixels:
        raise BadMask(f"run lengths cover {sum(runs)} pixels, the image {size[0]}x{size[1]} has {pixels}")
    return RunLengths(size, np.asarray(runs, dtype=np.int64))


def _text(counts: str | bytes) -> str:
    """Return compressed run lengths as text; bytes that Python's `str` has written into JSON are taken out again."""
    if isinstance(counts, str) and counts[:2] in {"b'", 'b"'}:
        try:
            counts = ast.literal_eval(counts)
        except (ValueError, SyntaxError, MemoryError) as error:
            raise BadMask(f"run lengths are no text: {short(counts)}") from error
    return counts.decode("latin-1") if isinstance(counts, bytes) else str(counts)


class OutsideImage(BadMask):
    """A polygon reaches out of its image; `share` of the box around it lies inside."""

    def __init__(self, message: str, share: float) -> None:
        super().__init__(message, "bad polygon")
        self.share = share


def _check_polygon(polygon: Any, size: tuple[int, int]) -> None:
    if not isinstance(polygon, list) or len(polygon) < 6 or len(polygon) % 2:
        raise BadMask(f"a polygon needs at least three points x, y, not {short(polygon)}", "bad polygon")
    if not all(map(is_number, polygon)):
        raise BadMask(f"a polygon holds something that is no number: {short(polygon)}", "bad polygon")
    xs, ys = polygon[::2], polygon[1::2]
    for numbers, side, axis in ((xs, size[1], "x"), (ys, size[0], "y")):
        if min(numbers) < -OUTSIDE or max(numbers) > side + OUTSIDE:
            said = f"a polygon reaches outside the image: {axis} {min(numbers)}..{max(numbers)} of 0..{side}"
            raise OutsideImage(said, kept_share((min(xs), min(ys), max(xs), max(ys)), size))


def short(value: Any) -> str:
    """Return a value of JSON for a message."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
