"""Small COCO folders: three images, two classes, a polygon, a crowd of run lengths, an image without objects."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mst.data.synthetic.scenes import CLASSES, SceneSet

HEIGHT, WIDTH = 24, 32


def coco_content() -> dict[str, Any]:
    """Annotations of a.png (a rectangle and a crowd), b.png (a square) and c.png (nothing)."""
    images = [
        {"id": number, "file_name": f"{name}.png", "height": HEIGHT, "width": WIDTH}
        for number, name in enumerate("abc", start=1)
    ]
    crowd = np.zeros((HEIGHT, WIDTH), dtype=bool)
    crowd[12:20, 16:30] = True
    return {
        "images": images,
        "categories": [{"id": 7, "name": "disc"}, {"id": 3, "name": "box"}],
        "annotations": [
            _annotation(11, 1, 7, (4, 2, 10, 8), _rectangle(4, 2, 10, 8)),
            {
                **_annotation(12, 1, 3, (16, 12, 14, 8), {"size": [HEIGHT, WIDTH], "counts": _runs(crowd)}),
                "iscrowd": 1,
            },
            _annotation(13, 2, 3, (8, 8, 12, 12), _rectangle(8, 8, 12, 12)),
        ],
    }


def write_coco(root: Path, content: dict[str, Any] | None = None, split: str = "train") -> Path:
    """Write images whose annotated boxes are bright, and the annotations; return the folder."""
    content = content or coco_content()
    (root / "images").mkdir(parents=True, exist_ok=True)
    (root / "annotations").mkdir(exist_ok=True)
    for number, name in enumerate("abc", start=1):
        pixels = np.full((HEIGHT, WIDTH, 3), 40, dtype=np.uint8)
        for record in coco_content()["annotations"]:
            if record["image_id"] == number and not record["iscrowd"]:
                x, y, w, h = record["bbox"]
                pixels[y : y + h, x : x + w] = 220
        Image.fromarray(pixels).save(root / "images" / f"{name}.png")
    (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))
    return root


def write_scenes(root: Path, scenes: SceneSet, split: str = "train") -> Path:
    """Write synthetic scenes with the masks of all their objects; return the folder."""
    images, annotations = [], []
    (root / "images").mkdir(parents=True)
    (root / "annotations").mkdir()
    for index, scene in enumerate(scenes):
        height, width = scene.image.shape[1:]
        Image.fromarray(scene.image.transpose(1, 2, 0)).save(root / "images" / f"{index}.png")
        images.append({"id": index, "file_name": f"{index}.png", "height": height, "width": width})
        for label, box, mask in zip(scene.object_labels, scene.boxes, scene.instance_masks, strict=True):
            runs = {"size": [height, width], "counts": _runs(mask)}
            x0, y0, x1, y1 = map(int, box)
            record = _annotation(len(annotations), index, int(label), (x0, y0, x1 - x0, y1 - y0), runs)
            annotations.append({**record, "area": int(mask.sum())})
    categories = [{"id": number, "name": name} for number, name in enumerate(CLASSES)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))
    return root


def _annotation(number: int, image: int, category: int, box: tuple[int, int, int, int], mask: Any) -> dict[str, Any]:
    return {
        "id": number,
        "image_id": image,
        "category_id": category,
        "bbox": list(box),
        "area": box[2] * box[3],
        "iscrowd": 0,
        "segmentation": mask,
    }


def _rectangle(x: int, y: int, w: int, h: int) -> list[list[int]]:
    return [[x, y, x + w, y, x + w, y + h, x, y + h]]


def _runs(mask: np.ndarray[Any, Any]) -> list[int]:
    """Run lengths counted one pixel at a time."""
    runs, value = [0], False
    for pixel in mask.T.reshape(-1):
        if pixel != value:
            runs.append(0)
            value = not value
        runs[-1] += 1
    return runs
