"""One record of COCO JSON at a time, as annotation tools write them: read, or left out and counted.

Source: the COCO data format (cocodataset.org), and the exports of CVAT, Label Studio, Roboflow, labelme, FiftyOne,
VGG VIA and Supervision: ids as text or with `.0`, null for unknown values, boxes without masks and masks without boxes.
Letters: H W pixels.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from mst.evaluate.coco.image import CocoObject
from mst.evaluate.coco.masks import (
    LEAST_INSIDE,
    OUTSIDE,
    BadMask,
    Segmentation,
    is_number,
    kept_share,
    mask_area,
    mask_box,
    no_mask,
    read_segmentation,
    short,
    turned_mask,
)
from mst.evaluate.common.boxes import Box
from mst.evaluate.common.orientation import upright_box
from mst.runtime.images import Header
from mst.runtime.names import shown

WITHOUT_AREA = "without area"
EXACT = 2**53
"""From here on a float no longer tells neighbouring whole numbers apart."""


class _Name(NamedTuple):
    """The name of an annotation in messages; put together only when a message needs it."""

    annotation: str
    image: Path

    def __str__(self) -> str:
        return f"{self.annotation} of {shown(self.image.name)}"


class BadRecord(ValueError):
    """A record that is left out: the kind of mistake in two or three words, and a message that names the record."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


class Tally:
    """What was left out or clipped, by kind.

    Attributes:
        left_out: records by what is wrong with them.
        clipped: boxes and polygons that were cut at the border of their image.
        remarks: records that are used although something about them is odd.
        messages: for each kind, the first record and what is wrong with it.
    """

    def __init__(self) -> None:
        self.left_out: Counter[str] = Counter()
        self.clipped: Counter[str] = Counter()
        self.remarks: Counter[str] = Counter()
        self.messages: dict[str, str] = {}

    def drop(self, kind: str, message: str, count: int = 1) -> None:
        """Count records that are left out; `message` names the first of them."""
        self.left_out[kind] += count
        self.messages.setdefault(kind, message)

    def clip(self, kind: str, message: str) -> None:
        """Count a record that is cut at the border of its image."""
        self.clipped[kind] += 1
        self.messages.setdefault(kind, message)

    def remark(self, kind: str, message: str) -> None:
        """Count a record that is used all the same."""
        self.remarks[kind] += 1
        self.messages.setdefault(kind, message)

    @property
    def refused(self) -> int:
        """Number of records for which strict reading refuses a file; objects without area are none of them."""
        counted = self.left_out.total() + self.clipped.total() + self.remarks.total()
        return counted - self.left_out[WITHOUT_AREA]

    @property
    def first(self) -> str:
        """What is wrong with the first record that strict reading refuses; else with the first of any kind; else ""."""
        kinds = sorted(self.messages, key=lambda kind: kind == WITHOUT_AREA)
        return self.messages[kinds[0]] if kinds else ""

    def counts(self) -> dict[str, int]:
        """Return the number of records by kind."""
        clipped = {f"{kind} clipped": count for kind, count in self.clipped.items()}
        return {kind: count for kind, count in {**self.left_out, **clipped, **self.remarks}.items() if count}

    def __str__(self) -> str:
        """Return what was left out, clipped and remarked on in one line; "" if nothing was."""
        parts = []
        for counter, word in (
            (self.left_out, "left out"),
            (self.clipped, "clipped to the image"),
            (self.remarks, "used as they are"),
        ):
            kinds = ", ".join(f"{count} {kind}" for kind, count in counter.most_common() if count)
            parts += [f"{counter.total()} {word} ({kinds})"] if kinds else []
        advice = "; --strict refuses the file" if self.refused else ""
        return f"{', '.join(parts)}; the first: {self.first}{advice}" if parts else ""


class ImageRecord(NamedTuple):
    """An image that can be used.

    Attributes:
        path: of the image.
        size: (H, W) of the frame that its annotations belong to.
        turned: the header of an image that is turned while its annotations are not; None = both agree.
    """

    path: Path
    size: tuple[int, int]
    turned: Header | None = None


def whole(value: Any) -> int | None:
    """Return a whole number that may be written as 3, 3.0 or "3"; None for anything else."""
    if type(value) is int:
        return int(value)
    if isinstance(value, str) and re.fullmatch(r"\s*[+-]?[0-9]{1,40}(\.0*)?\s*", value):
        return int(value.partition(".")[0])
    if type(value) is float and value.is_integer() and abs(value) < EXACT:
        return int(value)
    return None


@dataclass(frozen=True)
class AnnotationReader:
    """Reads the annotations of one file.

    Attributes:
        images: by id.
        left_out: ids of images that are left out.
        labels: by category id.
        tally: counts what is clipped, and polygons that are left out beside good ones.
        seen: ids of the annotations read so far.
    """

    images: Mapping[int, ImageRecord]
    left_out: Collection[int]
    labels: Mapping[int, int]
    tally: Tally
    seen: set[int] = field(default_factory=set)

    def read(self, record: Any, position: int) -> tuple[int, CocoObject]:
        """Return an image's id and an object in it, from a record as JSON has it.

        Raises:
            BadRecord: it is left out.
        """
        if not isinstance(record, Mapping):
            raise BadRecord("no annotation", f"annotation record {position}: is no object, it is {short(record)}")
        own, number = _identify(record, position, self.seen)
        key = whole(record.get("image_id"))
        if key in self.left_out:
            raise BadRecord("annotation of an image left out", f"{own}: its image {key} was left out")
        if key is None or key not in self.images:
            said = f"image_id {short(record.get('image_id'))} is not among the images"
            raise BadRecord("unknown image", f"{own}: {said}")
        image = self.images[key]
        name = _Name(own, image.path)
        category = whole(record.get("category_id"))
        if category is None or category not in self.labels:
            said = f"category_id {short(record.get('category_id'))} is not among the categories"
            raise BadRecord("unknown category", f"{name}: {said}")
        crowd = whole(record.get("iscrowd") or 0)
        if crowd not in {0, 1} and record.get("iscrowd") is not True:
            raise BadRecord("bad iscrowd", f"{name}: iscrowd {short(record['iscrowd'])} must be 0 or 1")
        box, area, segmentation = _shape(record, image.size, name, self.tally)
        if image.turned is not None:
            box = upright_box(box, image.turned)
            segmentation = None if segmentation is None else turned_mask(segmentation, image.turned)
        return key, CocoObject(number, self.labels[category], box, area, crowd != 0, segmentation)


def _identify(record: Mapping[str, Any], position: int, seen: set[int]) -> tuple[str, int]:
    """Return the name of an annotation in messages, and its id; without an id, its position."""
    stated = record.get("id")
    if stated is None:
        return f"annotation record {position}", position
    number = whole(stated)
    if number is None:
        raise BadRecord("bad id", f"annotation record {position}: id {short(stated)} is no whole number")
    if number in seen:
        raise BadRecord("id that occurred before", f"annotation {number}: occurs twice")
    seen.add(number)
    return f"annotation {number}", number


def _shape(
    record: Mapping[str, Any], size: tuple[int, int], name: _Name, tally: Tally
) -> tuple[Box, float, Segmentation | None]:
    """Return box, area and mask of an annotation; what the file lacks is computed from the others."""
    stated, drawn = record.get("bbox"), record.get("segmentation")
    masked, boxed = not no_mask(drawn), not (stated is None or stated == [])
    if boxed and masked and isinstance(stated, list) and not any(stated):
        boxed = False  # zeros stand for a box that was not computed
    if not boxed and not masked:
        what = "keypoints only" if record.get("keypoints") else "without box and mask"
        raise BadRecord(what, f"{name}: has neither bbox nor segmentation")
    box, clipped = _box(stated, size, name, tally) if boxed else (None, False)
    area = record.get("area") or None
    if area is not None and (not is_number(area) or area < 0):
        raise BadRecord("bad area", f"{name}: area {short(area)} must be a number of at least 0")
    segmentation = _mask(drawn, size, name, tally) if masked else None
    if segmentation is not None and box is None:
        box = mask_box(segmentation)
    if box is None or box[2] <= box[0] or box[3] <= box[1]:
        raise BadRecord(WITHOUT_AREA, f"{name}: has no area")
    own = (box[2] - box[0]) * (box[3] - box[1])
    if area is None:
        area = own if segmentation is None else mask_area(segmentation)
    elif clipped:
        area = min(area, own)
    if area <= 0:
        raise BadRecord(WITHOUT_AREA, f"{name}: has no area")
    return box, float(area), segmentation


def _mask(value: Any, size: tuple[int, int], name: _Name, tally: Tally) -> Segmentation:
    def note(kind: str, message: str) -> None:
        (tally.clip if kind == "polygon" else tally.drop)(kind, f"{name}: {message}")

    try:
        return read_segmentation(value, size, note=note)
    except BadMask as problem:
        raise BadRecord(problem.kind, f"{name}: {problem}") from problem


def _box(value: Any, size: tuple[int, int], name: _Name, tally: Tally) -> tuple[Box, bool]:
    """Return (x0, y0, x1, y1) of COCO's (x, y, width, height), and whether it was clipped."""
    numbers = value if isinstance(value, list) else []
    if len(numbers) == 5 and all(map(is_number, numbers)):
        raise BadRecord("rotated box", f"{name}: bbox {short(value)} has five numbers: rotated boxes are not read")
    if len(numbers) != 4 or not all(map(is_number, numbers)):
        raise BadRecord("bad box", f"{name}: bbox {short(value)} must be four numbers x, y, width, height")
    x, y, width, height = map(float, numbers)
    if min(width, height) < 0:
        raise BadRecord("bad box", f"{name}: bbox {short(value)} has a negative width or height")
    if min(width, height) == 0:
        raise BadRecord(WITHOUT_AREA, f"{name}: has no area")
    box = x, y, x + width, y + height
    if min(x, y) >= -OUTSIDE and box[2] <= size[1] + OUTSIDE and box[3] <= size[0] + OUTSIDE:
        return box, False
    said = f"{name}: bbox {short(value)} reaches outside its image of {size[1]}x{size[0]} (width x height)"
    if kept_share(box, size) < LEAST_INSIDE:
        raise BadRecord("box outside", said)
    tally.clip("box", said)
    return (max(0.0, x), max(0.0, y), min(float(size[1]), box[2]), min(float(size[0]), box[3])), True
