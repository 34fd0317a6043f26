"""Records as annotation tools write them: read with the right values, or left out alone and counted."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as pycoco

from evaluate.coco.test_reading import BAD
from evaluate.coco_folders import coco_content, write_coco
from mst.errors import DataError
from mst.evaluate.coco.masks import mask_of
from mst.evaluate.coco.reading import CocoSet, find_coco, read_coco
from mst.evaluate.coco.records import whole

Spoil = Callable[[dict[str, Any]], None]


def read(root: Path, content: dict[str, Any], **given: Any) -> CocoSet:
    return read_coco(*find_coco(write_coco(root, content), "train"), **given)


def many(count: int = 40) -> dict[str, Any]:
    """The three images and 37 more without objects."""
    content = coco_content()
    for number in range(4, count + 1):
        content["images"].append({"id": number, "file_name": f"{number}.png", "height": 24, "width": 32})
    return content


def write_many(root: Path, count: int = 40) -> None:
    (root / "images").mkdir(parents=True, exist_ok=True)
    for number in range(4, count + 1):
        Image.new("RGB", (32, 24), (number, 0, 0)).save(root / "images" / f"{number}.png")


ANNOTATIONS = [what for what in BAD if BAD[what][1] and not what.startswith(("image ", "missing", "categor", "no "))]


@pytest.mark.parametrize("what", [*ANNOTATIONS, "image in a list", "category in a list"])
def test_a_bad_annotation_costs_itself(tmp_path: Path, what: str, capsys: pytest.CaptureFixture[str]) -> None:
    content = copy.deepcopy(coco_content())
    if what == "neither":
        content["annotations"][0]["segmentation"] = []
    BAD[what][0](content)
    coco = read(tmp_path, content)
    assert sum(len(image.objects) for image in coco.images) == 2
    assert list(coco.left_out.values()) == [1]
    said = " ".join(capsys.readouterr().err.split())
    assert "1 left out (1 " in said
    assert said.count("the first: ") == 1
    assert said.endswith("; --strict refuses the file")


def test_kinds_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = coco_content()
    good = content["annotations"][0]
    content["annotations"] += [{**good, "id": 20 + n, "category_id": 5} for n in range(3)]
    content["annotations"] += [{**good, "id": 30, "bbox": [1, 1, 5, 5, 9]}, {**good, "id": 31, "bbox": [-3, 2, 10, 8]}]
    coco = read(tmp_path, content)
    assert coco.left_out == {"unknown category": 3, "rotated box": 1, "box clipped": 1}
    assert coco.images[0].objects[-1].box == (0.0, 2.0, 7.0, 10.0)
    assert coco.images[0].objects[-1].area == 56.0  # the file says 80, of the whole box
    said = " ".join(capsys.readouterr().err.split())
    assert (
        "4 left out (3 unknown category, 1 rotated box), 1 clipped to the image (1 box); the first: annotation 20"
        in said
    )


def test_a_bad_polygon_beside_a_good_one(tmp_path: Path) -> None:
    content = coco_content()
    good = content["annotations"][0]["segmentation"][0]
    far = [100, 100, 110, 100, 110, 110]
    content["annotations"][0]["segmentation"] = [[1, 2], good, ["x"] * 6, far]
    coco = read(tmp_path, content)
    assert coco.left_out == {"bad polygon": 3}
    assert mask_of(coco.images[0].objects[0].segmentation).sum() == 80  # type: ignore[arg-type]
    with pytest.raises(DataError, match=r"3 bad records, the first: annotation 11 of a\.png: a polygon needs at least"):
        read(tmp_path, content, strict=True)


def test_a_polygon_that_reaches_out_is_cut_at_the_border(tmp_path: Path) -> None:
    content = coco_content()
    content["annotations"][0].update(bbox=[-4, 2, 14, 8], segmentation=[[-4, 2, 10, 2, 10, 10, -4, 10]])
    coco = read(tmp_path, content)
    assert coco.left_out == {"box clipped": 1, "polygon clipped": 1}
    mask = mask_of(coco.images[0].objects[0].segmentation)  # type: ignore[arg-type]
    assert (mask.sum(), mask[2:10, 0:10].all()) == (80, True)


def test_missing_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_many(tmp_path)
    (tmp_path / "images" / "9.png").unlink()
    content = many()
    content["annotations"].append({**content["annotations"][0], "id": 50, "image_id": 9})
    coco = read(tmp_path, content)
    assert len(coco.images) == 39
    assert coco.left_out == {"missing image": 1, "annotation of an image left out": 1}
    assert "the first: image 9: there is no " in " ".join(capsys.readouterr().err.split())
    for number in (10, 11):
        (tmp_path / "images" / f"{number}.png").unlink()
    with pytest.raises(
        DataError, match=r"3 of 40 images cannot be used, at most 5% .* image 9: .* looked for in .*images"
    ):
        read(tmp_path, content)


def test_an_id_of_two_files_costs_both(tmp_path: Path) -> None:
    write_many(tmp_path)
    content = many()
    content["images"][10]["id"] = 1  # whose annotations are those of image 1?
    coco = read(tmp_path, content)
    assert len(coco.images) == 38
    assert coco.left_out == {"image id of two files": 1, "annotation of an image left out": 2}
    content = many()
    content["images"].append(content["images"][0])
    coco = read(tmp_path, content)
    assert (len(coco.images), coco.left_out) == (40, {"repeated image record": 1})
    assert len(coco.images[0].objects) == 2


def test_one_file_under_two_ids_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = coco_content()
    content["images"][2]["file_name"] = "./a.png"
    coco = read(tmp_path, content)
    assert coco.left_out == {"image under two ids": 1}
    assert "image 3: " in capsys.readouterr().err
    with pytest.raises(DataError, match=r"1 bad record, the first: image 3: .*a\.png is image 1 already"):
        read(tmp_path, content, strict=True)


@pytest.mark.parametrize(
    ("value", "number"),
    [
        (3, 3),
        (3.0, 3),
        ("3", 3),
        (" 3 ", 3),
        ("3.0", 3),
        ("-7", -7),
        (2**70, 2**70),
        (True, None),
        (3.5, None),
        ("x", None),
        ("", None),
        (None, None),
        ([3], None),
        (1e300, None),
        (float("nan"), None),
        ("٣", None),
    ],
)
def test_whole_numbers(value: Any, number: int | None) -> None:
    assert whole(value) == number


def test_values_as_people_have_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plain = read(tmp_path / "plain", coco_content())
    content = coco_content()
    for record in content["images"]:
        record.update(id=str(record["id"]), height=float(record["height"]), width=None)
    content["images"][1].pop("height")
    content["images"][2].update(height=0, width=0)
    for record in content["categories"]:
        record.update(id=float(record["id"]), supercategory="none", color="#fff", keypoints=["a"])
    first, crowd, last = content["annotations"]
    first.update(id="11", image_id="1", category_id="7", iscrowd=None, area=None)
    crowd.update(image_id=1.0, category_id=3.0, iscrowd="1", area=0)
    last.update(category_id="3.0", image_id="2", iscrowd=False, ignore=0, attributes={"occluded": False})
    last.pop("id")
    last.pop("area")
    content.update(info={"year": 2024}, licenses=[], videos=None)
    coco = read(tmp_path / "other", content, strict=True)
    assert capsys.readouterr().err == ""
    assert (coco.classes, coco.category_ids, coco.masks) == (plain.classes, plain.category_ids, True)
    for one, other in zip(coco.images, plain.images, strict=True):
        assert (one.id, one.size, Path(one.name).name) == (other.id, other.size, Path(other.name).name)
        for found, expected in zip(one.objects, other.objects, strict=True):
            assert (found.label, found.box, found.area, found.crowd) == (
                (expected.label, expected.box, expected.area, expected.crowd)
            )


def test_a_group_called_as_its_class_is_no_class(tmp_path: Path) -> None:
    content = coco_content()
    content["categories"].append({"id": 0, "name": "box", "supercategory": "none"})  # Roboflow
    coco = read(tmp_path, content, strict=True)
    assert (coco.classes, coco.category_ids) == (("box", "disc"), (3, 7))
    assert [item.label for image in coco.images for item in image.objects] == [1, 0, 0]


@pytest.mark.parametrize("box", [None, [], [0, 0, 0, 0]])
def test_boxes_from_masks(tmp_path: Path, box: Any) -> None:
    content = coco_content()
    for record in content["annotations"]:
        record.update(bbox=box, area=None)
    coco = read(tmp_path, content, strict=True)
    found = [(item.box, item.area) for image in coco.images for item in image.objects]
    assert found == [((4, 2, 14, 10), 80), ((16, 12, 30, 20), 112), ((8, 8, 20, 20), 144)]


@pytest.mark.parametrize("mask", [None, [], [[]], {}, "absent"])
def test_boxes_without_masks(tmp_path: Path, mask: Any) -> None:
    content = coco_content()
    for record in content["annotations"]:
        record.update(segmentation=mask, area=None)
        if mask == "absent":
            record.pop("segmentation")
    coco = read(tmp_path, content, strict=True)
    assert not coco.masks
    assert [(o.box, o.area, o.segmentation) for o in coco.images[0].objects] == [
        ((4, 2, 14, 10), 80, None),
        ((16, 12, 30, 20), 112, None),
    ]


def test_a_few_objects_without_a_mask_among_many_that_have_one(tmp_path: Path) -> None:
    content = coco_content()
    good = content["annotations"][0]
    content["annotations"] += [{**good, "id": 100 + n} for n in range(20)]
    content["annotations"][4]["segmentation"] = []
    coco = read(tmp_path, content)
    assert (coco.masks, coco.left_out) == (True, {"without mask": 1})
    assert sum(len(image.objects) for image in coco.images) == 22


def test_masks_as_python_wrote_them(tmp_path: Path) -> None:
    crowd = np.zeros((24, 32), dtype=bool)
    crowd[12:20, 16:30] = True
    runs = pycoco.encode(np.asfortranarray(crowd.astype(np.uint8)))
    forms = [
        runs["counts"].decode(),
        str(runs["counts"]),
        [float(n) for n in coco_content()["annotations"][1]["segmentation"]["counts"]],
    ]
    for number, form in enumerate(forms):
        content = coco_content()
        content["annotations"][1]["segmentation"] = {"size": [24, 32], "counts": form}
        coco = read(tmp_path / str(number), content, strict=True)
        np.testing.assert_array_equal(mask_of(coco.images[0].objects[1].segmentation), crowd)  # type: ignore[arg-type]
    content["annotations"][1]["segmentation"] = {"size": [24, 32], "counts": "b'a1"}
    assert read(tmp_path, content).left_out == {"bad mask": 1}
    content = coco_content()
    content["annotations"][0]["segmentation"] = content["annotations"][0]["segmentation"][0]  # without the outer list
    coco = read(tmp_path, content, strict=True)
    assert mask_of(coco.images[0].objects[0].segmentation).sum() == 80  # type: ignore[arg-type]


def test_keypoints_only(tmp_path: Path) -> None:
    content = coco_content()
    content["annotations"].append(
        {"id": 90, "image_id": 1, "category_id": 3, "keypoints": [1, 1, 2], "num_keypoints": 1}
    )
    assert read(tmp_path, content).left_out == {"keypoints only": 1}


def test_files_that_are_no_annotations(tmp_path: Path) -> None:
    write_coco(tmp_path)
    file, images = find_coco(tmp_path, "train")
    content = coco_content()
    content.pop("annotations")
    for text, message in (
        (content, "has no list 'annotations': such files of test images have nothing to learn from or to score"),
        ([{"image_id": 1, "category_id": 1, "bbox": [1, 1, 1, 1], "score": 1}], "is not COCO JSON"),
        ({"a.png1234": {"filename": "a.png", "regions": []}}, "is not COCO JSON, it has no list 'images'"),
    ):
        file.write_text(json.dumps(text))
        with pytest.raises(DataError, match=message):
            read_coco(file, images)
