"""Objects with boxes and masks from COCO JSON: every record is checked before anything is computed.

Source: the COCO data format (cocodataset.org). Differs: nothing is taken on trust. A record that does not fit is left
out and counted by kind; with `strict`, the file is refused. Letters: H W pixels.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import count, groupby
from pathlib import Path
from typing import Any

import numpy as np

from mst.data.sources import ImageIndex, ImageSource
from mst.data.sources.mixed import MixedImages
from mst.data.value_range import Scale
from mst.errors import DataError
from mst.evaluate.coco.files import MOST_LEFT_OUT, ImageRecords, read_images
from mst.evaluate.coco.image import CocoImage, CocoObject, check_images
from mst.evaluate.coco.masks import PolygonMask, Segmentation, short
from mst.evaluate.coco.places import Places, find_coco
from mst.evaluate.coco.records import AnnotationReader, BadRecord, Tally, whole
from mst.evaluate.common.boxes import Box
from mst.evaluate.common.orientation import Frame
from mst.runtime.identity import DataIdentity, annotated
from mst.runtime.logging import warn
from mst.runtime.names import shown

__all__ = [
    "CocoImage",
    "CocoObject",
    "CocoSet",
    "check_images",
    "coco_json",
    "find_coco",
    "read_coco",
    "with_classes_of",
]


@dataclass(frozen=True)
class CocoSet:
    """The images of one annotation file.

    Attributes:
        file: the JSON file.
        classes: category names in the order of their ids.
        category_ids: the file's ids, one for each class.
        images: in the order of the file.
        left_out: number of records that were left out or clipped, by kind.
        masks: every object has a mask.
        frame: to which frame the user said that annotations of images that EXIF turns belong; None = it was found out.
        frames: how many of the images that EXIF turns have annotations of which frame.
    """

    file: Path
    classes: tuple[str, ...]
    category_ids: tuple[int, ...]
    images: tuple[CocoImage, ...]
    left_out: Mapping[str, int] = field(default_factory=dict)
    masks: bool = True
    frame: Frame | None = None
    frames: Mapping[str, int] = field(default_factory=dict)

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.images)

    @property
    def source(self) -> ImageSource:
        """The images, in the order of the file."""
        return images_of(self.images)

    def with_scale(self, scale: Scale) -> CocoSet:
        """Return the same set with `scale`, which turns values that are not stored in 8 bits into such."""
        return replace(self, images=tuple(replace(image, scale=scale) for image in self.images))

    def fingerprint(self) -> DataIdentity:
        """Return the identity of the annotations' bytes, and of names and content of the images."""
        return annotated(self.source.fingerprint(), self.described())

    def described(self) -> list[Path | bytes]:
        """Return all that decides about the objects: the file, and the frame if it was given."""
        return [self.file] if self.frame is None else [self.file, self.frame.encode()]


def images_of(images: Sequence[CocoImage]) -> ImageSource:
    """Return the source of images of annotation files, in their order."""
    if not images:
        return ImageIndex.of([])
    groups = groupby(images, key=lambda image: id(image.source))
    listed = [[*group] for _, group in groups]
    positions = (np.asarray([image.position for image in group], dtype=np.int64) for group in listed)
    return MixedImages.of([group[0].source.only(chosen) for group, chosen in zip(listed, positions, strict=True)])


def read_coco(file: Path, images: Path | Places, *, strict: bool = False, annotations: Frame | None = None) -> CocoSet:
    """Read and check an annotation file.

    A record that does not fit is left out, a box or polygon that reaches out of its image is clipped; one warning
    counts them by kind.

    Args:
        file: COCO JSON with `images`, `annotations` and `categories`.
        images: the folder that `file_name` is relative to, or the folders that `find_coco` proposes, of which the one
            that holds the files is taken.
        strict: refuse a file with such records; objects without area are left out all the same.
        annotations: whether boxes and masks of images with an EXIF orientation belong to the image as it is displayed
            or as it is stored; None = what the sizes in the file tell, and displayed if they tell nothing.

    Raises:
        DataError: it is no COCO JSON; two folders hold files of these names; more than 5 % of the images cannot be used
            (missing, of another size than stated, without id); or, with `strict`, a record does not fit.
    """
    content = _parse(file)
    tally = Tally()
    if not content["images"]:
        raise DataError(f"{file}: has no images")
    names = _categories(file, content["categories"])
    places = Places((images,)) if isinstance(images, Path) else images
    found = read_images(file, content["images"], places, annotations, tally)
    classes, ids, labels = _classes(names, content["annotations"])
    objects = _objects(content["annotations"], found, labels, tally)
    masks = _same_kind(objects, found, tally)
    _check_pixels(file, [item.box for items in objects.values() for item in items])
    if strict and tally.refused:
        raise DataError(f"{file}: {tally.refused} bad record{'s' * (tally.refused > 1)}, the first: {tally.first}")
    if str(tally):
        warn(f"{file}: {tally}")
    entries = []
    source = ImageIndex.of(record.path for record in found.usable.values())
    for position, (number, record) in enumerate(found.usable.items()):
        size = record.size if record.turned is None else record.turned.upright
        entries.append(CocoImage(number, source, position, size, tuple(objects[number]), found.headers[number]))
    return CocoSet(file, classes, ids, tuple(entries), tally.counts(), masks, annotations, found.frames)


def _check_pixels(file: Path, boxes: list[Box]) -> None:
    """Refuse boxes that are shares of the image's sides, as YOLO writes them.

    Raises:
        DataError: all lie between 0 and 1, and not at whole numbers.
    """
    if boxes and all(max(box) <= 1 for box in boxes) and any(end % 1 for box in boxes for end in box):
        raise DataError(
            f"{file}: all {len(boxes)} boxes lie between 0 and 1: COCO's are in pixels, these seem to be shares of the "
            "image's sides; multiply them by width and height"
        )


def _parse(file: Path) -> dict[str, list[Any]]:
    try:
        content = json.loads(file.read_bytes())  # UTF-8, 16 or 32, with or without a mark
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{file}: cannot be read as JSON ({error})") from error
    for key in ("images", "categories", "annotations"):
        if not isinstance(content, dict) or not isinstance(content.get(key), list):
            hint = ""
            if key == "annotations" and content.get(key) is None:
                hint = ": such files of test images have nothing to learn from or to score"
            raise DataError(f"{file}: is not COCO JSON, it has no list {key!r}{hint}")
    return dict(content)


def _categories(file: Path, records: list[Any]) -> dict[int, str]:
    """Return name by id, ascending."""
    found: dict[int, str] = {}
    for record in records:
        number = whole(record.get("id")) if isinstance(record, Mapping) else None
        name = record.get("name") if isinstance(record, Mapping) else None
        if type(name) in {int, float}:
            name = str(name)
        if number is None or not isinstance(name, str) or found.setdefault(number, name) != name:
            raise DataError(f"{file}: category {short(record)} needs an id of its own, a whole number, and a name")
    if not found:
        raise DataError(f"{file}: has no categories")
    return dict(sorted(found.items()))


def _classes(
    names: Mapping[int, str], annotations: Sequence[Any]
) -> tuple[tuple[str, ...], tuple[int, ...], dict[int, int]]:
    """Return class names, an id for each, and the class of each id. Ids with the same name are one class.

    Roboflow writes groups as categories too, and a group may have the name of a class. A class keeps the id that most
    of its annotations have.
    """
    classes = list(dict.fromkeys(names.values()))
    labels = {number: classes.index(name) for number, name in names.items()}
    if len(classes) == len(names):
        return tuple(classes), tuple(names), labels
    used = Counter(whole(record.get("category_id")) for record in annotations if isinstance(record, Mapping))
    same = ([number for number, label in labels.items() if label == position] for position in range(len(classes)))
    return tuple(classes), tuple(max(ids, key=lambda number: used[number]) for ids in same), labels


def _objects(
    records: Sequence[Any], images: ImageRecords, labels: Mapping[int, int], tally: Tally
) -> dict[int, list[CocoObject]]:
    """Return the objects of each image, by its id."""
    objects: dict[int, list[CocoObject]] = {number: [] for number in images.usable}
    reader = AnnotationReader(images.usable, images.left_out, labels, tally)
    for position, record in enumerate(records):
        try:
            number, found = reader.read(record, position)
        except BadRecord as problem:
            tally.drop(problem.kind, str(problem))
        else:
            objects[number].append(found)
    return objects


def _same_kind(objects: dict[int, list[CocoObject]], images: ImageRecords, tally: Tally) -> bool:
    """Return whether all objects have masks; a few without one, among many with one, are left out first."""
    bare = [(number, item) for number, items in objects.items() for item in items if item.segmentation is None]
    if not bare or len(bare) > MOST_LEFT_OUT * sum(map(len, objects.values())):
        return not bare
    first, item = bare[0]
    said = f"annotation {item.id} of {images.usable[first].path.name}: has no mask, where others have one"
    tally.drop("without mask", said, len(bare))
    for number in {number for number, _ in bare}:
        objects[number] = [item for item in objects[number] if item.segmentation is not None]
    return True


def with_classes_of(known: CocoSet, coco: CocoSet) -> CocoSet:
    """Return a set with the classes of another one, matched by name; ids and order may differ.

    Ids stay those of the set's own file. A class that this file lacks gets the other set's id, or a free one.

    Raises:
        DataError: the set has objects of a class that the other set lacks.
    """
    used = Counter(item.label for image in coco.images for item in image.objects)
    labels = {name: label for label, name in enumerate(known.classes)}
    unknown = {coco.classes[label]: total for label, total in used.items() if coco.classes[label] not in labels}
    if unknown:
        first = min(unknown, key=coco.classes.index)
        alike = [name for name in known.classes if name.casefold().split() == first.casefold().split()]
        hint = f" (names count letter by letter: it has {shown(alike[0])})" if alike else ""
        objects = sum(unknown.values())
        raise DataError(
            f"{coco.file}: {objects} objects are of categories that {known.file} lacks ({len(unknown)}, the first: "
            f"{shown(first)}{hint}): what was not learnt cannot be scored; give both files the same names"
        )
    own = dict(zip(coco.classes, coco.category_ids, strict=True))
    taken = {own[name] for name in known.classes if name in own}
    free = (number for number in count(1) if number not in taken)
    ids = []
    for name, number in zip(known.classes, known.category_ids, strict=True):
        chosen = own[name] if name in own else number if number not in taken else next(free)
        taken.add(chosen)
        ids.append(chosen)
    images = tuple(
        replace(image, objects=tuple(replace(o, label=labels[coco.classes[o.label]]) for o in image.objects))
        for image in coco.images
    )
    return replace(coco, classes=known.classes, category_ids=tuple(ids), images=images)


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
            mask = {} if found.segmentation is None else {"segmentation": _segmentation_json(found.segmentation)}
            yield {
                "image_id": image.id,
                "category_id": coco.category_ids[found.label],
                "bbox": [x0, y0, x1 - x0, y1 - y0],
                "area": found.area,
                "iscrowd": int(found.crowd),
                **mask,
            }


def _segmentation_json(segmentation: Segmentation) -> Any:
    if isinstance(segmentation, PolygonMask):
        return segmentation.polygons
    return {"size": list(segmentation.size), "counts": segmentation.counts.tolist()}
