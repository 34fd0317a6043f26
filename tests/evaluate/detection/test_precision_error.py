"""Standard errors of AP: weights of one give pycocotools' numbers, copies of images give those of weights."""

from __future__ import annotations

import numpy as np
import pytest

from evaluate.detection.test_metrics import pycocotools_statistics, random_detections, random_set
from mst.evaluate.coco.reading import coco_json
from mst.evaluate.detection.metrics import coco_metrics, detection_records
from mst.evaluate.detection.precision_error import average_precisions, matches, precision_errors

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("kind", ["bbox", "segm"])
def test_once_each_image_is_cocos_ap(seed: int, kind: str) -> None:
    coco = random_set(seed)
    detections = random_detections(coco, seed + 100)
    classes = matches(coco_json(coco), detection_records(detections, coco, kind=kind), kind=kind)
    found = average_precisions(classes, np.ones((2, len(coco.images))))
    expected = pycocotools_statistics(coco, detections, kind)
    assert found.shape == (2, 10)
    assert found.mean(1) == pytest.approx([expected[0]] * 2, abs=1e-9)
    assert found[0, [0, 5]] == pytest.approx(expected[1:3], abs=1e-9)


def test_an_image_that_is_not_drawn_does_not_count() -> None:
    coco = random_set(5)
    detections = random_detections(coco, 105)
    classes = matches(coco_json(coco), detection_records(detections, coco, kind="bbox"), kind="bbox")
    part = coco.images[:5]
    some = [item for item in detections if item.image_id in {image.id for image in part}]
    expected = pycocotools_statistics(type(coco)(coco.file, coco.classes, coco.category_ids, part), some, "bbox")
    weights = np.array([[1.0] * 5 + [0.0] * 3, [0.0] * 8])
    found = average_precisions(classes, weights)
    assert found[0].mean() == pytest.approx(expected[0], abs=1e-9)
    assert np.isnan(found[1]).all()


def test_errors_fall_with_images_and_stand_beside_their_metric() -> None:
    few, many = random_set(2, images=8), random_set(2, images=72)
    errors = {}
    for coco in (few, many):
        records = detection_records(random_detections(coco, 3), coco, kind="bbox")
        errors[len(coco.images)] = precision_errors(coco_json(coco), records, kind="bbox", seed=0, draws=60)
    assert set(errors[8]) == {"ap", "ap50", "ap75"}
    assert 0 < 1.5 * errors[72]["ap"] < errors[8]["ap"]  # a third where images are alike
    found = coco_metrics(few, random_detections(few, 3), masks=False, seed=0)
    assert found["ap_box_se"] == coco_metrics(few, random_detections(few, 3), masks=False, seed=0)["ap_box_se"] > 0
    assert not any(key.endswith("_se") for key in coco_metrics(few, random_detections(few, 3), masks=False))
    assert precision_errors(coco_json(few), [], kind="bbox", seed=0) == {}
    nothing = random_set(1, images=8)  # its AP is 0 in every draw
    records = detection_records(random_detections(nothing, 3), nothing, kind="bbox")
    assert precision_errors(coco_json(nothing), records, kind="bbox", seed=0, draws=20) == {}
