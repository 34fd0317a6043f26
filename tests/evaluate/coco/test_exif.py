"""Annotations of images that EXIF turns: boxes, polygons and run lengths lie on their objects, whatever they are of."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps

from mst.errors import DataError
from mst.evaluate.coco.masks import mask_of, run_lengths_of
from mst.evaluate.coco.reading import CocoSet, check_images, read_coco
from mst.evaluate.common.orientation import Frame
from mst.evaluate.detection.metrics import Detection, coco_metrics, encode_mask

Form = Literal["polygon", "runs", "box"]


def write(
    root: Path, orientation: int, frame: Frame, form: Form = "runs", *, square: bool = False, name: str = "x"
) -> dict[str, Any]:
    """Write an image with a bright rectangle in a corner, and return its COCO records."""
    stored = np.full((32, 32 if square else 48, 3), 20, np.uint8)
    stored[3:9, 5:17] = 230
    exif = Image.Exif()
    exif[274] = orientation
    root.mkdir(parents=True, exist_ok=True)
    Image.fromarray(stored).save(root / f"{name}.png", exif=exif)
    with Image.open(root / f"{name}.png") as image:
        shown = np.asarray(ImageOps.exif_transpose(image))
    mask: NDArray[np.bool_] = (shown if frame == "displayed" else stored)[..., 0] > 100
    (y0, x0), (y1, x1) = np.argwhere(mask).min(0).tolist(), (np.argwhere(mask).max(0) + 1).tolist()
    masks: dict[Form, Any] = {
        "polygon": [[x0, y0, x1, y0, x1, y1, x0, y1]],
        "runs": {"size": list(mask.shape), "counts": run_lengths_of(mask).counts.tolist()},
        "box": None,
    }
    return {
        "image": {"file_name": f"{name}.png", "height": mask.shape[0], "width": mask.shape[1]},
        "object": {"category_id": 1, "bbox": [x0, y0, x1 - x0, y1 - y0], "segmentation": masks[form]},
    }


def read(root: Path, *records: dict[str, Any], annotations: Frame | None = None) -> CocoSet:
    content = {
        "images": [{"id": n, **record["image"]} for n, record in enumerate(records)],
        "annotations": [{"id": n, "image_id": n, **record["object"]} for n, record in enumerate(records)],
        "categories": [{"id": 1, "name": "x"}],
    }
    (root / "a.json").write_text(json.dumps(content))
    return read_coco(root / "a.json", root, annotations=annotations)


def scores(coco: CocoSet) -> dict[str, float]:
    """AP of detections that are made from the pixels."""
    found = []
    for image in coco.images:
        bright = image.read()[0] > 100
        rows, columns = torch.where(bright.any(1))[0], torch.where(bright.any(0))[0]
        box = (float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1))
        found.append(Detection(image.id, 0, 0.9, box, encode_mask(bright)))
    return coco_metrics(coco, found, masks=coco.masks)


@pytest.mark.parametrize("frame", ["displayed", "stored"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation(tmp_path: Path, orientation: int, frame: Frame) -> None:
    records = [write(tmp_path, orientation, frame, form, name=form) for form in ("polygon", "runs")]
    told = orientation >= 5  # by the size
    coco = read(tmp_path, *records, annotations=None if told else frame)
    metrics = scores(coco)
    assert (metrics["ap_box"], metrics["ap_mask"]) == pytest.approx((100, 100))
    check_images(coco.images, channels=3)
    for image in coco.images:
        bright = (image.read()[0] > 100).numpy()
        np.testing.assert_array_equal(mask_of(image.objects[0].segmentation), bright)  # type: ignore[arg-type]
    boxes = read(tmp_path, write(tmp_path, orientation, frame, "box"), annotations=None if told else frame)
    assert scores(boxes)["ap_box"] == pytest.approx(100)


@pytest.mark.parametrize("orientation", [2, 3, 4])
def test_what_sizes_do_not_tell_follows_the_others(tmp_path: Path, orientation: int) -> None:
    quiet = [write(tmp_path, orientation, "stored"), write(tmp_path, 6, "stored", square=True, name="square")]
    assert scores(read(tmp_path, *quiet))["ap_box"] < 50  # taken as displayed: the switch is there for them
    assert scores(read(tmp_path, *quiet, annotations="stored"))["ap_mask"] == pytest.approx(100)
    others = [write(tmp_path, 6, "stored", name="six"), write(tmp_path, 1, "stored", name="one")]
    coco = read(tmp_path, *quiet, *others)
    assert scores(coco)["ap_mask"] == pytest.approx(100)
    assert coco.frames == {"stored": 3}
    coco = read(tmp_path, write(tmp_path, orientation, "displayed"), write(tmp_path, 8, "displayed", name="eight"))
    assert scores(coco)["ap_mask"] == pytest.approx(100)


def test_the_switch_wins_over_the_size(tmp_path: Path) -> None:
    record = write(tmp_path, 6, "stored", "polygon")
    record["image"].update(height=48, width=32)  # of the displayed image, though boxes are of the stored one
    assert scores(read(tmp_path, record, annotations="stored"))["ap_mask"] == pytest.approx(100)
    record["image"].update(height=None, width=None)
    assert scores(read(tmp_path, record, annotations="stored"))["ap_mask"] == pytest.approx(100)


def test_one_warning_counts_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    records = [write(tmp_path, n, "stored", name=str(n)) for n in range(1, 9)]
    coco = read(tmp_path, *records)
    said = " ".join(capsys.readouterr().err.split())
    assert "EXIF turns 7 of 8 images, the first: " in said
    assert said.count("--annotations displayed or stored") == 1
    assert said.count("as stored") == 1
    plain = coco.fingerprint().digest
    coco = read(tmp_path, *records, annotations="stored")
    assert capsys.readouterr().err == ""
    assert coco.fingerprint().digest != plain


def test_sizes_of_neither(tmp_path: Path) -> None:
    record = write(tmp_path, 6, "stored")
    record["image"]["height"] = 40
    message = r"the image is 48x32, its annotations say 40x48 \(H x W\); EXIF orientation 6 turns the stored 32x48"
    with pytest.raises(DataError, match=message):
        read(tmp_path, record)
