"""COCO's average precision and recall of boxes and masks, computed by faster-coco-eval.

Source: the COCO detection metrics (Lin et al. 2014; cocodataset.org, "Detection evaluation"). Masks are scored without
their boxes in the record: given both, COCO's code would take a mask's size class (small, medium, large) from the box.
Letters: H W pixels, M detections of an image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from mst.errors import MissingExtra
from mst.evaluate.coco.masks import coco_mask_library
from mst.evaluate.coco.reading import CocoSet, coco_json
from mst.evaluate.detection.precision_error import precision_errors

STATISTICS = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large", "ar1", "ar10", "ar100")
"""The first of COCO's twelve numbers, in their order."""


class Detection(NamedTuple):
    """One detected object.

    Attributes:
        image_id: of `CocoImage`.
        label: position in `CocoSet.classes`.
        score: confidence.
        box: (x0, y0, x1, y1) in pixels.
        mask: COCO's compressed run lengths, {"size": [H, W], "counts": str}; None from a detector of boxes.
    """

    image_id: int
    label: int
    score: float
    box: tuple[float, float, float, float]
    mask: dict[str, Any] | None


def encode_mask(mask: Tensor) -> dict[str, Any]:
    """Return a bool mask [H, W] as COCO's compressed run lengths."""
    runs = coco_mask_library().encode(np.asfortranarray(mask.cpu().numpy().astype(np.uint8)))
    counts = runs["counts"]
    return {
        "size": [int(side) for side in runs["size"]],
        "counts": counts if isinstance(counts, str) else counts.decode(),
    }


def detection_records(detections: Sequence[Detection], coco: CocoSet, *, kind: str) -> list[dict[str, Any]]:
    """Return COCO result records with boxes (`bbox`), masks (`segm`) or `both`."""
    records = []
    for found in detections:
        record: dict[str, Any] = {
            "image_id": found.image_id,
            "category_id": coco.category_ids[found.label],
            "score": found.score,
        }
        x0, y0, x1, y1 = found.box
        if kind != "segm":
            record["bbox"] = [x0, y0, x1 - x0, y1 - y0]
        if kind != "bbox" and found.mask is not None:
            record["segmentation"] = found.mask
        records.append(record)
    return records


def coco_metrics(
    coco: CocoSet, detections: Sequence[Detection], *, masks: bool = True, seed: int | None = None
) -> dict[str, float]:
    """Return `ap_box`, `ap50_box`, ..., `ap_mask`, ... in percent; metrics of sizes without any object are left out.

    Args:
        coco: the truth.
        detections: at most 100 of an image count.
        masks: whether truth and detections have masks; if not, only metrics of boxes are returned.
        seed: of the bootstrap for the standard errors `ap_box_se`, `ap50_box_se`, `ap75_box_se`, ...; None = without.

    Raises:
        MissingExtra: faster-coco-eval is not installed.
    """
    metrics: dict[str, float] = {}
    for kind, name in (("bbox", "box"), ("segm", "mask"))[: 1 + masks]:
        for statistic, value in zip(STATISTICS, coco_statistics(coco, detections, kind=kind), strict=False):
            if value >= 0:
                metrics[f"{statistic}_{name}"] = 100 * value
        if seed is not None:
            own, found = _numbered(coco, detections)
            records = detection_records(found, own, kind=kind)
            errors = precision_errors(coco_json(own), records, kind=kind, seed=seed)
            metrics |= {f"{each}_{name}_se": round(100 * error, 6) for each, error in errors.items()}
    return metrics


def coco_statistics(coco: CocoSet, detections: Sequence[Detection], *, kind: str) -> list[float]:
    """Return COCO's twelve numbers as shares; -1 for sizes without any object.

    Args:
        coco: the truth.
        detections: at most 100 of an image count.
        kind: bbox or segm.
    """
    try:
        from faster_coco_eval import COCO, COCOeval_faster
    except ImportError as error:
        raise MissingExtra("faster-coco-eval", "detection") from error
    coco, detections = _numbered(coco, detections)
    truth = coco_json(coco)
    records = detection_records(detections, coco, kind=kind)
    ground = COCO(truth)
    found = ground.loadRes(records) if records else COCO({**truth, "annotations": []})
    evaluation = COCOeval_faster(ground, found, kind)
    evaluation.run()
    return [float(value) for value in evaluation.stats[:12]]


def _numbered(coco: CocoSet, detections: Sequence[Detection]) -> tuple[CocoSet, list[Detection]]:
    """Return both with images and categories numbered from 1 on: COCO's code rounds ids from 2^53 on."""
    numbers = {image.id: number for number, image in enumerate(coco.images, start=1)}
    images = tuple(replace(image, id=numbers[image.id]) for image in coco.images)
    ids = tuple(range(1, len(coco.classes) + 1))
    found = [item._replace(image_id=numbers[item.image_id]) for item in detections]
    return replace(coco, images=images, category_ids=ids), found
