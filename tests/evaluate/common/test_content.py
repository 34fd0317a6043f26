"""Digests of labelled sets: the same for a copy elsewhere, another one for any change of labels or pixels."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from evaluate.coco_folders import write_coco
from mst.data.synthetic.scenes import SceneSet
from mst.evaluate.coco.reading import find_coco, read_coco
from mst.evaluate.common.content import shared_files, tell_shared
from mst.evaluate.objectness.objects import coco_objects, scene_objects
from mst.evaluate.segmentation.data import SegmentationSet
from mst.evaluate.segmentation.folder import segmentation_folder
from mst.runtime.identity import DataIdentity


def write_pairs(root: Path) -> Path:
    for part in ("images", "masks"):
        (root / part).mkdir(parents=True)
    for name in "abc":
        pixels = np.full((8, 8), ord(name), np.uint8)
        Image.fromarray(pixels).convert("RGB").save(root / "images" / f"{name}.png")
        Image.fromarray((np.arange(64).reshape(8, 8) % 7 == "abc".index(name)).astype(np.uint8)).save(
            root / "masks" / f"{name}.png"
        )
    (root / "train.txt").write_text("a\nb\n")
    (root / "val.txt").write_text("c\n")
    (root / "classes.json").write_text('["x", "y"]')
    return root


def swap(first: Path, second: Path) -> None:
    one, two = first.read_bytes(), second.read_bytes()
    first.write_bytes(two)
    second.write_bytes(one)


def segmentation(root: Path) -> DataIdentity:
    return segmentation_folder(root).train.fingerprint()


def detection(root: Path) -> DataIdentity:
    return read_coco(*find_coco(root, "train")).fingerprint()


def objectness(root: Path) -> DataIdentity:
    return coco_objects(read_coco(*find_coco(root, "train"))).fingerprint()


@pytest.mark.parametrize(
    ("write", "digest", "first", "second"),
    [
        (write_pairs, segmentation, "masks/a.png", "masks/b.png"),
        (write_pairs, segmentation, "images/a.png", "images/b.png"),
        (write_coco, detection, "images/a.png", "images/b.png"),
        (write_coco, objectness, "images/a.png", "images/b.png"),
    ],
)
def test_swapped_files_are_another_set_and_a_copy_is_the_same(
    tmp_path: Path, write: Callable[[Path], Path], digest: Callable[[Path], DataIdentity], first: str, second: str
) -> None:
    root = write(tmp_path / "one")
    shutil.copytree(root, tmp_path / "two")
    before = digest(root)
    assert digest(tmp_path / "two") == before
    swap(root / first, root / second)
    assert digest(root) != before


@pytest.mark.parametrize("digest", [detection, objectness])
def test_other_annotations_are_another_set(tmp_path: Path, digest: Callable[[Path], DataIdentity]) -> None:
    file = write_coco(tmp_path) / "annotations" / "instances_train.json"
    before, content = digest(tmp_path), json.loads(file.read_text())
    content["categories"][0]["id"], content["categories"][1]["id"] = 3, 7
    file.write_text(json.dumps(content))
    assert digest(tmp_path) != before


def test_sets_in_memory_differ_by_their_pixels() -> None:
    images = [torch.full((3, 4, 4), 9, dtype=torch.uint8), torch.zeros(3, 4, 4, dtype=torch.uint8)]
    masks = [torch.zeros(4, 4, dtype=torch.int64), torch.ones(4, 4, dtype=torch.int64)]
    one, two = SegmentationSet.from_tensors(images, masks), SegmentationSet.from_tensors(images, masks[::-1])
    assert one.fingerprint() == SegmentationSet.from_tensors(images, masks).fingerprint() != two.fingerprint()
    assert one.evenly(1).fingerprint() != one.fingerprint()
    assert scene_objects(SceneSet(0, 3, 32)).fingerprint() != scene_objects(SceneSet(1, 3, 32)).fingerprint()


def test_images_in_both_sets(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    draw = np.random.default_rng(0)
    files = {}
    for number, name in enumerate(("t0", "t1", "t2", "v0", "v1", "v2")):
        files[name] = tmp_path / name
        files[name].write_bytes(draw.bytes(20_000 + number))
    files["v1"].write_bytes(files["t2"].read_bytes())  # a copy
    middle = bytearray(files["t0"].read_bytes())
    middle[10_000] ^= 1
    files["v2"].write_bytes(middle)  # the same size, beginning and end
    train, val = ([files[f"{part}{n}"] for n in range(3)] for part in "tv")
    assert shared_files(train, val) == [(files["t2"], files["v1"])]
    assert shared_files(train, [*val, files["t0"], tmp_path / "gone"])[-1] == (files["t0"], files["t0"])
    assert shared_files([], val) == shared_files(train, []) == []
    tell_shared(train, val)
    said = " ".join(capsys.readouterr().err.split())
    assert "1 of 3 validation images are training images as well, the first: " in said
    tell_shared(train, [files["v0"]])
    assert capsys.readouterr().err == ""
