"""COCO metrics equal to pycocotools on random truths and predictions, crowds and empty images included."""

from __future__ import annotations

import contextlib
import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from mst.data.sources import ImageIndex
from mst.evaluate.coco.masks import mask_of, run_lengths_of
from mst.evaluate.coco.reading import CocoImage, CocoObject, CocoSet, coco_json
from mst.evaluate.detection.metrics import Detection, coco_metrics, coco_statistics, detection_records, encode_mask

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
HEIGHT, WIDTH = 150, 200


def random_set(seed: int, images: int = 8) -> CocoSet:
    """Rectangles of all sizes, a third of them crowds; every fourth image is empty. Ids count from 0, as many do."""
    draw = np.random.default_rng(seed)
    entries, number = [], 0
    for index in range(images):
        objects = []
        for _ in range(0 if index % 4 == 3 else int(draw.integers(1, 7))):
            mask, box = rectangle(draw)
            crowd = bool(draw.random() < 0.3)
            label = int(draw.integers(0, 2))
            objects.append(CocoObject(number, label, box, float(mask.sum()), crowd, run_lengths_of(mask)))
            number += 1
        entries.append(CocoImage(index + 1, ImageIndex.of([f"{index}.jpg"]), 0, (HEIGHT, WIDTH), tuple(objects)))
    return CocoSet(Path("truth.json"), ("a", "b", "nowhere"), (2, 5, 9), tuple(entries))


def rectangle(draw: np.random.Generator) -> tuple[np.ndarray, tuple[float, float, float, float]]:
    w, h = (int(2 + (side - 3) * draw.random() ** 2) for side in (WIDTH, HEIGHT))
    x, y = int(draw.integers(0, WIDTH - w)), int(draw.integers(0, HEIGHT - h))
    mask = np.zeros((HEIGHT, WIDTH), dtype=bool)
    mask[y : y + h, x : x + w] = True
    return mask, (float(x), float(y), float(x + w), float(y + h))


def random_detections(coco: CocoSet, seed: int) -> list[Detection]:
    """Objects found a little beside their place, some twice, some with another label, and false alarms everywhere."""
    draw = np.random.default_rng(seed)
    found = []
    for image in coco.images:
        for item in image.objects:
            for _ in range(int(draw.integers(0, 3))):
                shift = draw.integers(-6, 7, 2)
                mask = np.roll(mask_of(item.segmentation), shift, (0, 1))
                x0, y0, x1, y1 = item.box
                box = (x0 + shift[1], y0 + shift[0], x1 + shift[1], y1 + shift[0])
                label = item.label if draw.random() < 0.8 else 2
                found.append(detection(image.id, label, draw.random(), box, mask))
        mask, box = rectangle(draw)
        found.append(detection(image.id, 1, draw.random(), box, mask))
    return found


def detection(image: int, label: int, score: float, box: tuple[float, ...], mask: np.ndarray) -> Detection:
    x0, y0, x1, y1 = map(float, box)
    return Detection(image, label, round(float(score), 3), (x0, y0, x1, y1), encode_mask(torch.from_numpy(mask)))


def pycocotools_statistics(coco: CocoSet, detections: list[Detection], kind: str) -> list[float]:
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = {**coco_json(coco), "info": {}}
        truth.createIndex()
        found = COCO()
        found.dataset = {**truth.dataset, "annotations": []}
        found.createIndex()
        if detections:
            found = truth.loadRes(detection_records(detections, coco, kind=kind))
        evaluation = COCOeval(truth, found, kind)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return [float(value) for value in evaluation.stats]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("kind", ["bbox", "segm"])
def test_equal_to_pycocotools(seed: int, kind: str) -> None:
    coco = random_set(seed)
    detections = random_detections(coco, seed + 100)
    expected = pycocotools_statistics(coco, detections, kind)
    assert 0.01 < expected[0] < 0.95
    assert coco_statistics(coco, detections, kind=kind) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("kind", ["bbox", "segm"])
def test_no_detection_no_object_and_only_crowds(kind: str) -> None:
    coco = random_set(1)
    assert coco_statistics(coco, [], kind=kind) == pytest.approx(pycocotools_statistics(coco, [], kind))
    empty = CocoSet(coco.file, coco.classes, coco.category_ids, coco.images[3:4])
    alarms = [found for found in random_detections(coco, 5) if found.image_id == 4]
    assert alarms
    expected = pycocotools_statistics(empty, alarms, kind)
    assert coco_statistics(empty, alarms, kind=kind) == pytest.approx(expected) == [-1.0] * 12
    crowd = next(image for image in coco.images if any(item.crowd for item in image.objects))
    only = replace(crowd, objects=tuple(item for item in crowd.objects if item.crowd))
    crowds = CocoSet(coco.file, coco.classes, coco.category_ids, (only,))
    inside = [found for found in random_detections(coco, 6) if found.image_id == only.id]
    assert coco_statistics(crowds, inside, kind=kind) == pytest.approx(pycocotools_statistics(crowds, inside, kind))


def test_perfect_detections_and_names() -> None:
    coco = random_set(2)
    assert coco.images[0].objects[0].id == 0  # COCO's own code would count this object as missed
    perfect = [
        detection(image.id, item.label, 0.9, item.box, mask_of(item.segmentation))
        for image in coco.images
        for item in image.objects
        if not item.crowd
    ]
    metrics = coco_metrics(coco, perfect)
    assert metrics["ap_box"] == pytest.approx(100)
    assert metrics["ap50_mask"] == pytest.approx(100)
    assert set(metrics) >= {"ap_mask", "ap75_box", "ap_small_box", "ar100_mask"}


@pytest.mark.parametrize("first", [2**53, 2**63, 10**30, -9])
def test_ids_of_any_size_and_sign_give_the_same_numbers(first: int) -> None:
    coco = random_set(3)
    found = random_detections(coco, 7)
    images = tuple(replace(image, id=first + image.id) for image in coco.images)
    other = replace(coco, images=images, category_ids=(first, first + 1, first + 2))
    moved = [item._replace(image_id=first + item.image_id) for item in found]
    for kind in ("bbox", "segm"):
        assert coco_statistics(other, moved, kind=kind) == coco_statistics(coco, found, kind=kind)
