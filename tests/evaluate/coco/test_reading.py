"""The COCO reader: equal to pycocotools on every form of mask, and each kind of bad record named."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask as pycoco

from evaluate.coco_folders import coco_content, write_coco
from mst.data.sources import ImageIndex
from mst.errors import DataError
from mst.evaluate.coco.masks import BadMask, RunLengths, decode_counts, mask_of, read_segmentation, run_lengths_of
from mst.evaluate.coco.reading import CocoImage, check_images, coco_json, find_coco, read_coco


@settings(max_examples=60, deadline=None)
@given(height=st.integers(1, 40), width=st.integers(1, 40), seed=st.integers(0, 999), share=st.floats(0, 1))
def test_run_lengths_are_those_of_pycocotools(height: int, width: int, seed: int, share: float) -> None:
    mask = np.random.default_rng(seed).random((height, width)) < share
    compressed = pycoco.encode(np.asfortranarray(mask.astype(np.uint8)))
    text = compressed["counts"].decode()
    runs = run_lengths_of(mask)
    assert decode_counts(text) == runs.counts.tolist()
    assert runs.counts.sum() == height * width
    for counts in (text, runs.counts.tolist()):
        segmentation = read_segmentation({"size": [height, width], "counts": counts}, (height, width))
        np.testing.assert_array_equal(mask_of(segmentation), mask)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_polygons_are_filled_as_pycocotools_fills_them() -> None:
    draw = np.random.default_rng(0)
    for points in (3, 4, 7, 20):
        polygons = [(draw.random(2 * points) * np.tile([50, 30], points)).tolist() for _ in range(2)]
        expected = pycoco.decode(pycoco.merge(pycoco.frPyObjects(polygons, 30, 50)))
        np.testing.assert_array_equal(mask_of(read_segmentation(polygons, (30, 50))), expected)


@settings(max_examples=200, deadline=None)
@given(text=st.text(st.characters(min_codepoint=40, max_codepoint=115), max_size=12))
def test_damaged_run_lengths_never_become_a_mask_of_another_size(text: str) -> None:
    try:
        segmentation = read_segmentation({"size": [3, 4], "counts": text}, (3, 4))
    except BadMask:
        return
    assert isinstance(segmentation, RunLengths)
    assert mask_of(segmentation).shape == (3, 4)


def test_reads_what_the_file_says(tmp_path: Path) -> None:
    write_coco(tmp_path)
    coco = read_coco(*find_coco(tmp_path, "train"))
    assert (coco.classes, coco.category_ids) == (("box", "disc"), (3, 7))
    assert [len(image.objects) for image in coco.images] == [2, 1, 0]
    first = coco.images[0].objects[0]
    assert (first.label, first.box, first.crowd) == (1, (4.0, 2.0, 14.0, 10.0), False)
    assert mask_of(first.segmentation).sum() == 80
    assert coco.images[0].objects[1].crowd
    assert coco.images[0].read().shape == (3, 24, 32)
    again = coco_json(coco)
    assert again["annotations"][0]["bbox"] == [4.0, 2.0, 10.0, 8.0]
    assert len(again["annotations"]) == 3


def test_shares_of_the_sides_are_no_pixels(tmp_path: Path) -> None:
    content = coco_content()
    for record in content["annotations"]:
        del record["segmentation"]
        x, y, w, h = record["bbox"]
        record |= {"bbox": [x / 32, y / 24, w / 32, h / 24], "area": None}
    write_coco(tmp_path, content)
    with pytest.raises(DataError, match="all 3 boxes lie between 0 and 1: COCO's are in pixels"):
        read_coco(*find_coco(tmp_path, "train"))


def test_finds_common_layouts(tmp_path: Path) -> None:
    write_coco(tmp_path / "a")
    file, images = find_coco(tmp_path / "a" / "annotations" / "instances_train.json", "val")
    assert file.name == "instances_train.json"
    assert {Path(image.name).parent for image in read_coco(file, images).images} == {tmp_path / "a" / "images"}
    official = tmp_path / "b"
    (official / "annotations").mkdir(parents=True)
    (official / "val2017").mkdir()
    (official / "annotations" / "instances_val2017.json").write_text("{}")
    file, images = find_coco(official, "val")
    assert (file, images.near[1]) == (official / "annotations/instances_val2017.json", official / "val2017")
    with pytest.raises(DataError, match=r"no COCO annotations at .*instances_train\.json"):
        find_coco(official, "train")


def test_objects_without_area_are_left_out_and_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = coco_content()
    content["annotations"][0]["bbox"] = [4, 2, 10, 0]
    content["annotations"][0]["segmentation"] = []  # nothing is asked of a mask that is left out
    content["annotations"][2]["bbox"] = [8, 8, 0, 12]
    file, images = find_coco(write_coco(tmp_path, content), "train")
    for strict in (False, True):
        coco = read_coco(file, images, strict=strict)
        assert coco.left_out == {"without area": 2}
        assert [len(image.objects) for image in coco.images] == [1, 0, 0]
        said = " ".join(capsys.readouterr().err.split())
        assert said.endswith("2 left out (2 without area); the first: annotation 11 of a.png: has no area")


def _set(part: str, index: int, key: str, value: Any) -> Callable[[dict[str, Any]], None]:
    return lambda content: content[part][index].__setitem__(key, value)


BAD: dict[str, tuple[Callable[[dict[str, Any]], None], str]] = {
    "missing image": (_set("images", 1, "file_name", "gone.png"), r"image 2: there is no .*gone\.png"),
    "image twice": (_set("images", 1, "id", 1), r"image record 1: id 1 occurs twice, for a\.png and b\.png"),
    "image without id": (_set("images", 1, "id", "one"), r"image record 1: needs an id"),
    "image without name": (_set("images", 1, "file_name", None), r"image record 1 \(id 2\): has no file_name"),
    "box outside": (_set("annotations", 0, "bbox", [30, 2, 10, 8]), r"annotation 11 of a\.png: bbox .* outside"),
    "box negative": (_set("annotations", 0, "bbox", [4, 2, -1, 8]), r"annotation 11 of a\.png: bbox .* negative"),
    "box not a number": (_set("annotations", 0, "bbox", [4, 2, float("nan"), 8]), r"must be four numbers"),
    "box too short": (_set("annotations", 0, "bbox", [4, 2]), r"must be four numbers"),
    "unknown category": (_set("annotations", 2, "category_id", 5), r"annotation 13 of b\.png: category_id 5"),
    "unknown image": (_set("annotations", 2, "image_id", 99), r"annotation 13: image_id 99"),
    "annotation twice": (_set("annotations", 2, "id", 11), r"annotation 11: occurs twice"),
    "annotation of another id": (
        _set("annotations", 2, "id", "x1"),
        r"annotation record 2: id 'x1' is no whole number",
    ),
    "run lengths of another size": (
        _set("annotations", 1, "segmentation", {"size": [32, 24], "counts": [768]}),
        r"annotation 12 of a\.png: run lengths are of size \[32, 24\], the image is \[24, 32\]",
    ),
    "run lengths too short": (
        _set("annotations", 1, "segmentation", {"size": [24, 32], "counts": [700, 60]}),
        r"run lengths cover 760 pixels, the image 24x32 has 768",
    ),
    "run lengths negative": (
        _set("annotations", 1, "segmentation", {"size": [24, 32], "counts": [-2, 770]}),
        r"run lengths hold the negative number -2",
    ),
    "run lengths damaged": (
        _set("annotations", 1, "segmentation", {"size": [24, 32], "counts": "oo"}),
        r"end in the middle of a number",
    ),
    "run lengths beyond any integer": (
        _set("annotations", 1, "segmentation", {"size": [24, 32], "counts": [10**30]}),
        r"run lengths cover 10+ pixels, the image 24x32 has 768",
    ),
    "run lengths that add up beyond 64 bits": (
        _set("annotations", 1, "segmentation", {"size": [24, 32], "counts": "ooooooooooo?" * 12}),
        r"annotation 12 of a\.png: run lengths ",
    ),
    "box beyond any float": (_set("annotations", 0, "bbox", [4, 2, 10**400, 8]), r"must be four numbers"),
    "polygon beyond any float": (_set("annotations", 0, "segmentation", [[1, 1, 5, 5, 10**400, 2]]), r"is no number"),
    "polygon of two points": (_set("annotations", 0, "segmentation", [[1, 1, 5, 5]]), r"at least three points"),
    "polygon outside": (_set("annotations", 0, "segmentation", [[1, 1, 5, 5, 90, 2]]), r"x 1\.\.90 of 0\.\.32"),
    "mask of text": (
        _set("annotations", 0, "segmentation", "x"),
        r"segmentation must be polygons or run lengths, not 'x'",
    ),
    "rotated box": (_set("annotations", 0, "bbox", [4, 2, 10, 8, 0.5]), r"five numbers: rotated boxes are not read"),
    "neither": (_set("annotations", 0, "bbox", None), r"annotation 11 of a\.png: has neither bbox nor segmentation"),
    "image in a list": (_set("annotations", 2, "image_id", [1]), r"annotation 13: image_id \[1\]"),
    "category in a list": (_set("annotations", 2, "category_id", [3]), r"category_id \[3\] is not among"),
    "crowd of two": (_set("annotations", 0, "iscrowd", 2), r"iscrowd 2 must be 0 or 1"),
    "area of text": (_set("annotations", 0, "area", "big"), r"area 'big' must be a number"),
    "category twice": (_set("categories", 1, "id", 7), r"category .* needs an id of its own"),
    "no categories": (lambda content: content["categories"].clear(), r"has no categories"),
    "no images": (lambda content: (content["images"].clear(), content["annotations"].clear()), r"has no images"),
    "no annotations": (lambda content: content.pop("annotations"), r"is not COCO JSON, it has no list 'annotations'"),
}


@pytest.mark.parametrize("what", BAD)
def test_bad_records_are_named(tmp_path: Path, what: str) -> None:
    spoil, message = BAD[what]
    content = copy.deepcopy(coco_content())
    if what == "neither":
        content["annotations"][0]["segmentation"] = []
    spoil(content)
    write_coco(tmp_path, content)
    with pytest.raises(DataError, match=message) as caught:
        read_coco(*find_coco(tmp_path, "train"), strict=True)
    assert "instances_train.json" in str(caught.value)


def test_all_bad_records_are_counted(tmp_path: Path) -> None:
    content = coco_content()
    for record in content["annotations"]:
        record["category_id"] = 1
    with pytest.raises(DataError, match=r"3 bad records, the first: annotation 11 of a\.png"):
        read_coco(*find_coco(write_coco(tmp_path, content), "train"), strict=True)


def test_sizes_in_headers_are_those_of_upright_images(tmp_path: Path) -> None:
    write_coco(tmp_path)
    turned = Image.new("RGB", (24, 32))
    turned.getexif()[274] = 6  # shown turned by a quarter: 32 wide, 24 high
    turned.save(tmp_path / "images" / "a.png", exif=turned.getexif())
    coco = read_coco(*find_coco(tmp_path, "train"))
    check_images(coco.images, channels=3)
    assert coco.images[0].read().shape == (3, 24, 32)


def test_images_that_no_training_could_read(tmp_path: Path) -> None:
    write_coco(tmp_path)
    coco = read_coco(*find_coco(tmp_path, "train"))
    with pytest.raises(DataError, match=r"a\.png: has 3 channels, 5 are asked for by the backbone$"):
        check_images(coco.images, channels=5)
    (tmp_path / "images" / "c.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"an annotated image cannot be read: .*c\.png: not an image"):
        check_images(coco.images, channels=3)


def test_an_image_of_another_size_and_a_file_that_is_no_json(tmp_path: Path) -> None:
    write_coco(tmp_path)
    Image.new("RGB", (5, 6)).save(tmp_path / "images" / "a.png")
    file, images = find_coco(tmp_path, "train")
    message = r"a\.png: the image is 6x5, its annotations say 24x32 \(H x W\)"
    with pytest.raises(
        DataError, match=r"1 of 3 images cannot be used, at most 5% .* the first: image 1: .*" + message
    ):
        read_coco(file, images)
    later = CocoImage(1, ImageIndex.of([tmp_path / "images" / "a.png"]), 0, (24, 32), ())
    for look in (later.read, lambda: check_images([later], channels=3)):
        with pytest.raises(DataError, match=message):
            look()
    whole = file.read_text()
    for text in ("{", whole[: len(whole) // 2], "[" * 100_000, "", '{"images": ' + "9" * 5000 + "}"):
        file.write_text(text)
        with pytest.raises(DataError, match=r"instances_train\.json: cannot be read as JSON"):
            read_coco(file, images)
    file.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="cannot be read as JSON"):
        read_coco(file, images)
    file.write_text(json.dumps([]))
    with pytest.raises(DataError, match="is not COCO JSON"):
        read_coco(file, images)
