"""The images of a COCO file: which file each record means, how large it is, and which way up its annotations are.

Letters: H W pixels.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from mst.data.background import read_in_threads
from mst.errors import DataError
from mst.evaluate.coco.image import check_size, header_of
from mst.evaluate.coco.places import Places, find_image, image_folder
from mst.evaluate.coco.records import ImageRecord, Tally, whole
from mst.evaluate.common.orientation import Frame, agreed_frame, frame_of
from mst.runtime.images import Header
from mst.runtime.logging import warn
from mst.runtime.names import shown

MOST_LEFT_OUT = 0.05
"""Share of a file's images that may be left out as unusable; above it the file is refused."""
READERS = 8
"""Threads that read headers: they wait for the disk, not for each other."""


class ImageRecords(NamedTuple):
    """The images of a file.

    Attributes:
        usable: images by id.
        headers: by id, of those that have one.
        left_out: ids of images that cannot be used.
        frames: how many of the images that EXIF turns have annotations of which frame.
    """

    usable: dict[int, ImageRecord]
    headers: dict[int, Header | None]
    left_out: set[int]
    frames: dict[str, int]


def read_images(file: Path, records: Sequence[Any], places: Places, frame: Frame | None, tally: Tally) -> ImageRecords:
    """Return the images that can be used.

    Args:
        file: the annotation file.
        records: its `images`.
        places: folders where they may lie.
        frame: to which frame the annotations of images that EXIF turns belong; None = it is found out, and said.
        tally: counts what is left out.

    Raises:
        DataError: more than `MOST_LEFT_OUT` of the images cannot be used.
    """
    texts = [record.get("file_name") for record in records if isinstance(record, dict)]
    folder = image_folder(file, [text for text in texts if isinstance(text, str)], places)
    paths, left_out = _paths(folder, records, tally)
    headers = dict(zip(paths, read_in_threads(header_of, paths.values(), READERS), strict=True))
    sizes = {number: size for record in records for number, size in _stated_size(record)}
    usable, frames = _upright(paths, headers, sizes, frame, tally)
    left_out |= paths.keys() - usable.keys()
    missing = tally.left_out.total() - tally.left_out["repeated image record"]
    if missing > MOST_LEFT_OUT * len(records):
        raise DataError(
            f"{file}: {missing} of {len(records)} images cannot be used, at most {MOST_LEFT_OUT:.0%} may be left out; "
            f"the first: {tally.messages[next(iter(tally.left_out))]}; they were looked for in {shown(folder)}"
        )
    if frames and frame is None:
        _tell(file, usable, headers, frames)
    return ImageRecords(usable, headers, left_out, frames)


def _paths(folder: Path, records: Sequence[Any], tally: Tally) -> tuple[dict[int, Path], set[int]]:
    """Return the file of each id, and the ids of images that are left out."""
    named: dict[int, str] = {}
    paths: dict[int, Path] = {}
    left_out: set[int] = set()
    users: dict[tuple[int, int], tuple[int, bool]] = {}

    def leave_out(number: int, kind: str, message: str) -> None:
        tally.drop(kind, message)
        left_out.add(number)
        paths.pop(number, None)

    for position, record in enumerate(records):
        values = record if isinstance(record, dict) else {}
        number, text = whole(values.get("id")), values.get("file_name")
        if number is None:
            tally.drop("image without id", f"image record {position}: needs an id, a whole number")
        elif not isinstance(text, str):
            leave_out(number, "image without file_name", f"image record {position} (id {number}): has no file_name")
        elif number in named and named[number] == text:
            tally.drop("repeated image record", f"image record {position}: id {number} occurs twice")
        elif number in named:
            said = f"image record {position}: id {number} occurs twice, for {shown(named[number])} and {shown(text)}"
            leave_out(number, "image id of two files", said)
        else:
            named[number] = text
            found = find_image(folder, text)
            if found is None:
                leave_out(number, "missing image", f"image {number}: there is no {shown(folder / text)}")
                continue
            path, shortened = found
            status = os.stat(path)
            other, before = users.setdefault((status.st_dev, status.st_ino), (number, shortened))
            paths[number] = path
            said = f"image {number}: {shown(path)} is image {other} already"
            if other != number and (shortened or before):
                for one in {number, other} - left_out:
                    leave_out(one, "image of an unclear name", f"{said}, folders left off its name")
            elif other != number:
                tally.remark("image under two ids", said)
    return paths, left_out


def _stated_size(record: Any) -> list[tuple[int, tuple[int, int]]]:
    """Return id and (H, W) of a record that states both sides; unknown sides may be null, 0 or absent."""
    if not isinstance(record, dict):
        return []
    number, height, width = (whole(record.get(key)) for key in ("id", "height", "width"))
    if number is None or height is None or width is None or min(height, width) < 1:
        return []
    return [(number, (height, width))]


def _upright(
    paths: dict[int, Path],
    headers: dict[int, Header | None],
    sizes: dict[int, tuple[int, int]],
    frame: Frame | None,
    tally: Tally,
) -> tuple[dict[int, ImageRecord], dict[str, int]]:
    """Return the images whose size fits, and how many of those that EXIF turns have annotations of which frame."""
    told: dict[int, Frame | Literal["either"]] = {}
    found: dict[int, ImageRecord] = {}
    for number, path in paths.items():
        header, stated = headers[number], sizes.get(number)
        if header is None:
            if stated is None:
                tally.drop("image without size", f"image {number}: neither the file nor {shown(path)} says its size")
                continue
            found[number] = ImageRecord(path, stated)
            continue
        own = frame_of(header, stated) if stated is not None else "either"
        if own is None:
            try:
                check_size(os.fspath(path), header.upright, stated or header.upright, header)
            except DataError as problem:
                tally.drop("image of another size", f"image {number}: {problem}")
            continue
        found[number] = ImageRecord(path, header.upright)
        if header.orientation != 1:
            told[number] = frame or own
    agreed = agreed_frame(list(told.values()))
    counted: Counter[str] = Counter()
    for number, own in told.items():
        decided = agreed if own == "either" else own
        counted[decided] += 1
        header = headers[number]
        if decided == "stored" and header is not None:
            found[number] = ImageRecord(paths[number], header.stored, header)
    return found, dict(counted)


def _tell(
    file: Path, usable: dict[int, ImageRecord], headers: dict[int, Header | None], frames: dict[str, int]
) -> None:
    turned = [usable[n].path for n, header in headers.items() if n in usable and header and header.orientation != 1]
    parts = " and ".join(f"in {count} to the image as {frame}" for frame, count in sorted(frames.items()))
    warn(
        f"{file}: EXIF turns {len(turned)} of {len(usable)} images, the first: {shown(turned[0])}; annotations are "
        f"taken to belong {parts}: --annotations displayed or stored, if that is wrong"
    )
