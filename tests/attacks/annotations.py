"""Damaged masks, COCO annotations and segmentation folders, drawn from a number."""

from __future__ import annotations

import io
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from attacks.images import damaged_image
from attacks.watch import Case
from data.pictures import encoded
from evaluate.coco_folders import HEIGHT, WIDTH, coco_content, write_coco
from mst.errors import MstError
from mst.evaluate.coco.masks import coco_mask_library, mask_of
from mst.evaluate.coco.places import find_coco
from mst.evaluate.coco.reading import CocoSet, coco_json, read_coco, with_classes_of
from mst.evaluate.objectness.objects import coco_objects
from mst.evaluate.segmentation.folder import segmentation_folder
from mst.evaluate.segmentation.mask_files import Labels, read_mask
from report.damage import damaged

NAMES = ("a", "b", "c", "d")
LABELS = (Labels(NAMES), Labels(NAMES, 255), Labels(NAMES, 255, {0: 0, 0xFF0000: 1, 0x00FF00: 2, 0x0000FF: 3}))
SAYINGS = (
    *("", "0", "[", "\\ud83d", "~", "P", "oooooooooooooooo", "PPPPPPPPPPPPPPPPPPPPPPPPPPPP", "`" * 30, "é", "\x00\x01"),
    *(" ", "1" * 3000, "/" * 20, "Z" * 999, "0\n"),
)
"""What may stand where a compressed run-length string does."""


def mask_files() -> list[bytes]:
    """Return masks of 24 x 32 pixels as tools write them."""
    values = np.random.default_rng(0).integers(0, len(NAMES), (HEIGHT, WIDTH), dtype=np.uint8)
    grey = Image.fromarray(values)
    palette = Image.fromarray(values).convert("P")
    palette.putdata(values.ravel().tolist())
    palette.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0, 0, 0, 255])
    images = (grey, palette, grey.point(lambda value: 255 * (value > 1)).convert("1"), grey.convert("RGB"))
    files = [encoded(image, form) for image in images for form in ("PNG", "TIFF", "BMP", "GIF")]
    deep = Image.fromarray(values.astype(np.uint16))
    files += [encoded(deep, "PNG"), encoded(deep, "TIFF"), encoded(grey, "TIFF", compression="tiff_lzw")]
    return [
        *files,
        encoded(palette, "PNG", bits=2),
        encoded(palette, "PNG", transparency=0),
        encoded(grey, "JPEG"),
        _array(values),
    ]


def _array(values: Any) -> bytes:
    stream = io.BytesIO()
    np.save(stream, values)
    return stream.getvalue()


def attack(folder: Path) -> Case:
    """Return the attack by one damaged mask (half of the numbers), annotation file or segmentation folder."""
    masks, content = mask_files(), compressed(coco_content())
    sound = json.dumps(content).encode()
    coco, segmented = write_coco(folder / "coco"), write_segmented(folder / "segmented", masks[0])
    known = read_coco(*find_coco(coco, "train"))
    kinds: dict[str, Callable[[random.Random], None]] = {
        "mask": lambda draw: _mask(folder, masks, draw),
        "coco": lambda draw: _coco(coco, sound, known, draw),
        "folder": lambda draw: _folder(segmented, draw),
    }

    def case(number: int) -> str:
        draw = random.Random(number)
        kind = draw.choice(("mask", "mask", "mask", "mask", "coco", "coco", "coco", "folder"))
        try:
            kinds[kind](draw)
        except MstError as error:
            said = " ".join(str(error).split())
            assert 0 < len(said) < 10_000, said[:3000]
            assert " at 0x" not in said, said
            return f"{kind} refused"
        return f"{kind} read"

    return case


def compressed(content: dict[str, Any]) -> dict[str, Any]:
    """Return the content with an object of compressed run lengths, as pycocotools writes them."""
    mask = np.zeros((HEIGHT, WIDTH), dtype=np.uint8, order="F")
    mask[3:9, 4:20] = 1
    counts = coco_mask_library().encode(mask)["counts"].decode()
    record = {
        **{"id": 14, "image_id": 2, "category_id": 7, "bbox": [4, 3, 16, 6], "area": 96, "iscrowd": 0},
        "segmentation": {"size": [HEIGHT, WIDTH], "counts": counts},
    }
    return {**content, "annotations": [*content["annotations"], record]}


def write_segmented(root: Path, mask: bytes) -> Path:
    """Write a segmentation folder of four images."""
    for name in ("images", "masks"):
        (root / name).mkdir(parents=True)
    for number in range(4):
        Image.new("RGB", (WIDTH, HEIGHT), (number, 9, 99)).save(root / "images" / f"{number}.png")
        (root / "masks" / f"{number}.png").write_bytes(mask)
    for name, content in _lists().items():
        (root / name).write_bytes(content)
    return root


def _lists() -> dict[str, bytes]:
    classes = json.dumps({"classes": ["a", "b", "c", "d"], "ignore_index": 255}).encode()
    return {"train.txt": b"0\n1\n2\n", "val.txt": b"3\n1\n", "classes.json": classes}


def _mask(folder: Path, masks: list[bytes], draw: random.Random) -> None:
    path = folder / "mask.png"
    path.write_bytes(damaged_image(draw.choice(masks), draw.choice(masks), draw))
    size = (HEIGHT, WIDTH) if draw.random() < 0.9 else (draw.randrange(1, 99), draw.randrange(1, 99))
    mask = read_mask(path, size, draw.choice(LABELS))
    assert mask.shape == size, mask.shape


def _coco(root: Path, sound: bytes, known: CocoSet, draw: random.Random) -> None:
    file = root / "annotations" / "instances_train.json"
    content = sound if draw.random() < 0.3 else damaged(sound, draw)
    if content is sound or draw.random() < 0.2:
        content = _damaged_masks(content, draw)
    file.write_bytes(content)
    path, places = find_coco(draw.choice((root, file)), "train")
    coco = read_coco(path, places, strict=draw.random() < 0.2)
    for image in coco.images:
        for found in image.objects:
            if found.segmentation is not None:
                assert mask_of(found.segmentation).shape == image.size, found
    json.dumps(coco_json(coco), allow_nan=False)
    objects = coco_objects(coco)
    objects.read(0)
    with_classes_of(known, coco)


def _damaged_masks(content: bytes, draw: random.Random) -> bytes:
    """Change polygons and run lengths, numbers to other numbers and keys to twice the same."""
    text = content.decode("utf-8", "replace")
    try:
        value = json.loads(text)
        record = draw.choice(value["annotations"])
        record["segmentation"] = _shape(draw)
        text = json.dumps(value)
    except (ValueError, TypeError, LookupError, RecursionError):
        pass
    if draw.random() < 0.3:
        text = text.replace('"id": ', draw.choice(('"id": 5, "id": ', '"id": 1e', '"id": -', '"id": 0.')), 1)
    return text.encode("utf-8", "surrogatepass")


def _shape(draw: random.Random) -> Any:
    numbers = (
        0,
        1,
        -1,
        5,
        24,
        32,
        768,
        769,
        2**31,
        2**32 + 5,
        2**63,
        10**30,
        1.5,
        float("nan"),
        1e308,
        None,
        "3",
        True,
    )
    some = [draw.choice(numbers) for _ in range(draw.choice((0, 1, 2, 5, 6, 7, 8, 900)))]
    size = draw.choice(([HEIGHT, WIDTH], [WIDTH, HEIGHT], some[:2], [10**5, 10**5], None, "x", [HEIGHT, WIDTH, 1]))
    counts = draw.choice((some, draw.choice(SAYINGS), "".join(chr(draw.randrange(32, 127)) for _ in range(20)), None))
    return draw.choice(
        ({"size": size, "counts": counts}, some, [some], [some, some], [[some]], {"counts": counts}, "x")
    )


def _folder(root: Path, draw: random.Random) -> None:
    sound = _lists()
    name = draw.choice(sorted(sound))
    try:
        text = sound[name]
        text = damaged(text, draw) if name == "classes.json" else damaged_image(text, sound["val.txt"], draw)
        (root / name).write_bytes(text)
        found = segmentation_folder(root)
        for part in (found.train, found.val):
            part.read(0)
    finally:
        (root / name).write_bytes(sound[name])
