"""What a trained detector finds in images without annotations, as one COCO file.

Letters: C channels, H W pixels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from mst.data.decoding import read_image
from mst.data.sources import ImageSource
from mst.data.unreadable import LeftOut, each_readable
from mst.data.value_range import BY_TYPE, Scale
from mst.errors import DataError
from mst.evaluate.coco.masks import mask_of, read_segmentation
from mst.evaluate.coco.reading import CocoImage
from mst.evaluate.common.features import device_of, frozen, progress_bar
from mst.evaluate.detection.detector import check_proportions, find_objects
from mst.evaluate.detection.evaluation import Watcher
from mst.evaluate.detection.file import DetectorDescription
from mst.evaluate.detection.metrics import Detection

MIN_SCORE = 0.05
"""torchvision's detectors return nothing of a lower score."""


@dataclass(frozen=True)
class Prediction:
    """Detections of a set of images.

    Attributes:
        images: that could be read; their ids count from 1.
        detections: in the order of the images, best first.
        unreadable: "path: reason" for each image left out.
    """

    images: tuple[CocoImage, ...]
    detections: tuple[Detection, ...]
    unreadable: tuple[str, ...]


Finder = Callable[[CocoImage, Tensor], list[Detection]]
"""An image and its pixels in [0, 1] [C, H, W] -> what is found in it."""


def predict_objects(
    detector: nn.Module,
    description: DetectorDescription,
    source: ImageSource,
    *,
    min_score: float = MIN_SCORE,
    progress: bool = True,
    watch: Watcher | None = None,
    scale: Scale = BY_TYPE,
    find: Finder | None = None,
) -> Prediction:
    """Return what is found in every image; unreadable and too narrow ones are left out and listed.

    Args:
        detector: from `load_detector`, on its device.
        description: of the detector.
        source: images; an id is a place among them.
        min_score: what scores less is left out.
        progress: show a bar.
        watch: called with each image.
        scale: see `mst.data.decoding.decode_image`.
        find: how a detector that is not torchvision's finds objects.
    """
    device, found_in = device_of(detector), find or partial(find_objects, detector)
    images: list[CocoImage] = []
    detections: list[Detection] = []
    left_out = LeftOut(len(source))

    def read(position: int) -> tuple[Tensor, CocoImage]:
        pixels = read_image(source, position, channels=description.spec.channels, scale=scale)
        image = CocoImage(position + 1, source, position, (pixels.shape[-2], pixels.shape[-1]), ())
        check_proportions(image, description.shape)
        return pixels, image

    each = each_readable(read, range(len(source)), left_out.add, catch=DataError)
    with frozen(detector), progress_bar("detecting", len(source), shown=progress) as advance:
        for _, item in each:
            advance(1)
            if item is None:
                continue
            pixels, image = item
            found = found_in(image, pixels.to(device).float() / 255)
            found = [one for one in found if one.score >= min_score]
            if watch is not None:
                watch(image, pixels, found)
            images.append(image)
            detections += found
    return Prediction(tuple(images), tuple(detections), tuple(left_out.lines))


def prediction_json(prediction: Prediction, description: DetectorDescription, root: Path) -> dict[str, Any]:
    """Return COCO's dictionary of images, categories and annotations, each with its `score`.

    `annotations` alone are COCO result records. File names are relative to `root` where they lie below it.
    """
    ids = description.category_ids
    sizes = {image.id: image.size for image in prediction.images}
    return {
        "images": [
            {
                "id": image.id,
                "file_name": _name(image.name, root),
                "height": image.size[0],
                "width": image.size[1],
            }
            for image in prediction.images
        ],
        "categories": [{"id": n, "name": name} for n, name in zip(ids, description.classes, strict=True)],
        "annotations": [
            _record(number, found, ids, sizes[found.image_id])
            for number, found in enumerate(prediction.detections, start=1)
        ],
    }


def _record(number: int, found: Detection, ids: tuple[int, ...], size: tuple[int, int]) -> dict[str, Any]:
    x0, y0, x1, y1 = found.box
    area: float = (x1 - x0) * (y1 - y0)
    if found.mask is not None:
        area = int(mask_of(read_segmentation(found.mask, size)).sum())
    return {
        "id": number,
        "image_id": found.image_id,
        "category_id": ids[found.label],
        "bbox": [x0, y0, x1 - x0, y1 - y0],
        "area": area,
        "iscrowd": 0,
        "score": found.score,
        "segmentation": [] if found.mask is None else found.mask,
    }


def _name(name: str, root: Path) -> str:
    path = Path(name)
    return str(path.relative_to(root)) if path.is_relative_to(root) else str(path)
