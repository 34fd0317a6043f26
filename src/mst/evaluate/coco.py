"""Objects with boxes and masks from COCO JSON: every record is checked before anything is computed.

Source: the COCO data format (cocodataset.org). Differs: nothing is believed. A file whose records do not fit each
other is refused with the number of bad records and the first one named; objects without area are left out and counted.
Letters: H W pixels.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from mst.data.decoding import OtherChannels, UnreadableImage, decode_image
from mst.errors import DataError
from mst.evaluate.coco_masks import OUTSIDE, BadMask, PolygonMask, Segmentation, is_number, read_segmentation
from mst.evaluate.coco_places import Places, find_coco, find_image, image_folder
from mst.evaluate.content import identity_of_files
from mst.runtime.identity import DataIdentity
from mst.runtime.images import image_header
from mst.runtime.logging import warn
from mst.runtime.names import shown

__all__ = ["CocoImage", "CocoObject", "CocoSet", "check_images", "coco_json", "find_coco", "read_coco"]


@dataclass(frozen=True)
class CocoObject:
    """One annotation.

    Attributes:
        id: of the annotation in its file.
        label: position of its category in `CocoSet.classes`.
        box: (x0, y0, x1, y1) in pixels, ends exclusive, as the file has it.
        area: pixels, as the file has it; decides small, medium and large.
        crowd: a region of many objects; never an object to be found, and never a false alarm.
        segmentation: its mask, checked.
    """

    id: int
    label: int
    box: tuple[float, float, float, float]
    area: float
    crowd: bool
    segmentation: Segmentation


@dataclass(frozen=True)
class CocoImage:
    """One image and its objects; `size` is (H, W)."""

    id: int
    path: Path
    size: tuple[int, int]
    objects: tuple[CocoObject, ...]

    def read(self, *, channels: int = 3) -> Tensor:
        """Return the pixels, uint8 [C, H, W].

        Raises:
            UnreadableImage: the file gives no image.
            DataError: it has another size than the annotations say.
        """
        image = decode_image(self.path, channels=channels)
        self.check_size((image.shape[-2], image.shape[-1]))
        return image

    def check_size(self, size: tuple[int, int]) -> None:
        """Refuse an image of another size (H, W) than its annotations are for.

        Raises:
            DataError: naming it.
        """
        if size != self.size:
            raise DataError(
                f"{self.path}: the image is {size[0]}x{size[1]}, its annotations say {self.size[0]}x{self.size[1]} "
                "(H x W)"
            )


@dataclass(frozen=True)
class CocoSet:
    """The images of one annotation file.

    Attributes:
        file: the JSON file.
        classes: category names in the order of their ids.
        category_ids: the file's ids, one for each class.
        images: in the order of the file.
        without_area: annotations that were left out because their box or mask has no area, as text.
    """

    file: Path
    classes: tuple[str, ...]
    category_ids: tuple[int, ...]
    images: tuple[CocoImage, ...]
    without_area: tuple[str, ...]

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.images)

    def fingerprint(self) -> DataIdentity:
        """Return the identity of the annotations' bytes, and of names and content of the images."""
        files = [image.path for image in self.images]
        return identity_of_files([str(file) for file in files], files=files, annotations=[self.file])


class _BadRecord(ValueError):
    """What is wrong with one record, and which."""


def read_coco(file: Path, images: Path | Places) -> CocoSet:
    """Read and check an annotation file.

    Args:
        file: COCO JSON with `images`, `annotations` and `categories`.
        images: the folder that `file_name` is relative to, or those that `find_coco` proposes: the one that holds the
            files is taken.

    Raises:
        DataError: not COCO JSON; two folders hold files of these names; or records that do not fit (an image that is
            not there, an unknown image or category, a box outside its image, a mask of another size, the same id
            twice): their number and the first.
    """
    content = _parse(file)
    categories = _categories(file, content["categories"])
    problems: list[str] = []
    sizes = _images(file, content["images"], Places((images,)) if isinstance(images, Path) else images, problems)
    objects: dict[int, list[CocoObject]] = {number: [] for number in sizes}
    without_area: list[str] = []
    seen: set[int] = set()
    labels = {number: position for position, number in enumerate(categories)}
    for position, record in enumerate(content["annotations"]):
        try:
            image, found = _annotation(record, position, sizes, labels, seen)
        except _BadRecord as problem:
            problems.append(str(problem))
            continue
        if found is None:
            without_area.append(f"annotation {record['id']} of {sizes[image][0].name}")
        else:
            objects[image].append(found)
    if problems:
        raise DataError(f"{file}: {len(problems)} bad record{'s' * (len(problems) > 1)}, the first: {problems[0]}")
    if without_area:
        counted = f"{len(without_area)} object{'s' * (len(without_area) > 1)}"
        warn(f"{file}: {counted} without area left out, the first: {without_area[0]}")
    entries = tuple(CocoImage(n, path, size, tuple(objects[n])) for n, (path, size) in sizes.items())
    if not entries:
        raise DataError(f"{file}: has no images")
    return CocoSet(file, tuple(categories.values()), tuple(categories), entries, tuple(without_area))


def _parse(file: Path) -> dict[str, list[Any]]:
    try:
        content = json.loads(file.read_bytes())  # UTF-8, 16 or 32, with or without a mark
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{file}: cannot be read as JSON ({error})") from error
    for key in ("images", "annotations", "categories"):
        if not isinstance(content, dict) or not isinstance(content.get(key), list):
            raise DataError(f"{file}: is not COCO JSON, it has no list {key!r}")
    return dict(content)


def _categories(file: Path, records: list[Any]) -> dict[int, str]:
    """Return name by id, ascending."""
    found: dict[int, str] = {}
    for record in records:
        good = isinstance(record, Mapping) and type(record.get("id")) is int and isinstance(record.get("name"), str)
        if not good or record["id"] in found:
            raise DataError(f"{file}: category {record!r} needs an id of its own, a whole number, and a name")
        found[record["id"]] = record["name"]
    if not found:
        raise DataError(f"{file}: has no categories")
    return dict(sorted(found.items()))


def _images(
    file: Path, records: list[Any], places: Places, problems: list[str]
) -> dict[int, tuple[Path, tuple[int, int]]]:
    """Return path and (H, W) by image id; what is wrong goes to `problems`."""
    texts = [record.get("file_name") for record in records if isinstance(record, dict)]
    folder = image_folder(file, [text for text in texts if isinstance(text, str)], places)
    found: dict[int, tuple[Path, tuple[int, int]]] = {}
    users: dict[Path, tuple[int, bool]] = {}
    for position, record in enumerate(records):
        name = f"image record {position}"
        values: list[Any] = [record.get(key) for key in ("id", "height", "width")] if isinstance(record, dict) else []
        if len(values) != 3 or any(type(value) is not int for value in values) or min(values[1:]) < 1:
            problems.append(f"{name}: needs id, height and width, whole numbers")
        elif not isinstance(record.get("file_name"), str):
            problems.append(f"{name} (id {values[0]}): has no file_name")
        elif values[0] in found:
            problems.append(f"{name}: id {values[0]} occurs twice")
        else:
            path, shortened = find_image(folder, record["file_name"]) or (folder / record["file_name"], None)
            found[values[0]] = path, (values[1], values[2])
            if shortened is None:
                problems.append(f"image {values[0]}: there is no {shown(path)}")
                continue
            other, before = users.setdefault(path, (values[0], shortened))
            if other != values[0] and (shortened or before):
                problems.append(f"image {values[0]}: {shown(path)} is image {other} already, folders left off its name")
    return found


def _annotation(
    record: Any,
    position: int,
    images: Mapping[int, tuple[Path, tuple[int, int]]],
    labels: Mapping[int, int],
    seen: set[int],
) -> tuple[int, CocoObject | None]:
    """Return the image's id and the object, None where it has no area."""
    if not isinstance(record, Mapping) or type(record.get("id")) is not int:
        raise _BadRecord(f"annotation record {position}: has no id, a whole number")
    name = f"annotation {record['id']}"
    if record["id"] in seen:
        raise _BadRecord(f"{name}: occurs twice")
    seen.add(record["id"])
    if type(record.get("image_id")) is not int or record["image_id"] not in images:
        raise _BadRecord(f"{name}: image_id {record.get('image_id')!r} is not among the images")
    path, size = images[record["image_id"]]
    name = f"{name} of {path.name}"
    if type(record.get("category_id")) is not int or record["category_id"] not in labels:
        raise _BadRecord(f"{name}: category_id {record.get('category_id')!r} is not among the categories")
    box = _box(record.get("bbox"), size, name)
    crowd = record.get("iscrowd", 0)
    if type(crowd) not in {int, bool} or crowd not in {0, 1}:
        raise _BadRecord(f"{name}: iscrowd {crowd!r} must be 0 or 1")
    area = record.get("area", (box[2] - box[0]) * (box[3] - box[1]))
    if not is_number(area) or area < 0:
        raise _BadRecord(f"{name}: area {area!r} must be a number of at least 0")
    if area == 0 or box[2] <= box[0] or box[3] <= box[1]:
        return record["image_id"], None
    try:
        segmentation = read_segmentation(record.get("segmentation"), size)
    except BadMask as problem:
        raise _BadRecord(f"{name}: {problem}") from problem
    label = labels[record["category_id"]]
    return record["image_id"], CocoObject(record["id"], label, box, float(area), bool(crowd), segmentation)


def _box(value: Any, size: tuple[int, int], name: str) -> tuple[float, float, float, float]:
    """Return (x0, y0, x1, y1) of COCO's (x, y, width, height)."""
    numbers = value if isinstance(value, list) else []
    if len(numbers) != 4 or not all(map(is_number, numbers)):
        raise _BadRecord(f"{name}: bbox {value!r} must be four numbers x, y, width, height")
    x, y, width, height = map(float, numbers)
    if min(width, height) < 0:
        raise _BadRecord(f"{name}: bbox {value} has a negative width or height")
    if min(x, y) < -OUTSIDE or x + width > size[1] + OUTSIDE or y + height > size[0] + OUTSIDE:
        raise _BadRecord(f"{name}: bbox {value} reaches outside its image of {size[1]}x{size[0]} (width x height)")
    return x, y, x + width, y + height


def check_images(images: Sequence[CocoImage], *, channels: int) -> None:
    """Compare the header of every image with its annotations: before hours of training, not in their midst.

    The first one, and files without a header that Pillow knows, are read whole.

    Raises:
        DataError: an image has another size than its annotations say; or one that is read whole cannot be, or has not
            the channels of the backbone.
    """
    for position, image in enumerate(images):
        size = _size_in_header(image.path)
        if position and size is not None:
            image.check_size(size)
            continue
        try:
            image.read(channels=channels)
        except OtherChannels as problem:
            raise DataError(f"{problem} by the backbone") from problem
        except UnreadableImage as problem:
            raise DataError(f"an annotated image cannot be read: {problem}") from problem


def _size_in_header(path: Path) -> tuple[int, int] | None:
    """Return (H, W) upright, or None where Pillow finds no header."""
    try:
        return image_header(path).upright
    except Exception:  # whatever damaged bytes raise: the decoder says what is wrong
        return None


def coco_json(coco: CocoSet) -> dict[str, Any]:
    """Return the checked annotations as COCO's own dictionary, masks as uncompressed run lengths or polygons.

    Annotations are numbered from 1 on: COCO's metrics take the id 0 for "nothing was matched".
    """
    return {
        "images": [{"id": i.id, "height": i.size[0], "width": i.size[1]} for i in coco.images],
        "categories": [{"id": n, "name": c} for n, c in zip(coco.category_ids, coco.classes, strict=True)],
        "annotations": [{"id": number, **record} for number, record in enumerate(_records(coco), start=1)],
    }


def _records(coco: CocoSet) -> Iterator[dict[str, Any]]:
    for image in coco.images:
        for found in image.objects:
            x0, y0, x1, y1 = found.box
            yield {
                "image_id": image.id,
                "category_id": coco.category_ids[found.label],
                "bbox": [x0, y0, x1 - x0, y1 - y0],
                "area": found.area,
                "iscrowd": int(found.crowd),
                "segmentation": _segmentation_json(found.segmentation),
            }


def _segmentation_json(segmentation: Segmentation) -> Any:
    if isinstance(segmentation, PolygonMask):
        return segmentation.polygons
    return {"size": list(segmentation.size), "counts": segmentation.counts.tolist()}
