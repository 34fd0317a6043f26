"""Image folders are those that hold the files; names are found as annotation tools export them."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from mst.errors import DataError
from mst.evaluate.coco.reading import CocoSet, find_coco, read_coco


def picture(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 6)).save(path)


def annotations(path: Path, *names: str) -> Path:
    box: dict[str, Any] = {"category_id": 1, "bbox": [1, 1, 3, 3], "segmentation": [[1, 1, 4, 1, 4, 4]]}
    content = {
        "images": [{"id": n, "file_name": name, "height": 6, "width": 8} for n, name in enumerate(names)],
        "categories": [{"id": 1, "name": "x"}],
        "annotations": [{"id": n, "image_id": n, **box} for n in range(len(names))],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


def read(root: Path, split: str = "val") -> CocoSet:
    return read_coco(*find_coco(root, split))


def folders(root: Path, split: str = "val") -> set[Path]:
    return {Path(image.name).parent for image in read(root, split).images}


@pytest.mark.parametrize("file", ["train/a.json", "annotations/instances_train.json", "train.json", "train_v2.json"])
def test_not_the_other_part_where_names_are_the_same(tmp_path: Path, file: str) -> None:
    for part in ("train", "val"):
        picture(tmp_path / part / "1.png")
    assert folders(annotations(tmp_path / file, "1.png")) == {tmp_path / "train"}


def test_a_file_whose_name_says_nothing_between_two_parts(tmp_path: Path) -> None:
    for part in ("train", "val"):
        picture(tmp_path / part / "1.png")
    file = annotations(tmp_path / "a.json", "1.png")
    with pytest.raises(DataError, match=r"a\.json: images of its names lie in .*val and in .*train.*: move it beside"):
        read(file)
    (tmp_path / "val" / "1.png").unlink()
    assert folders(file) == {tmp_path / "train"}
    (tmp_path / "val" / "1.png").symlink_to(tmp_path / "train" / "1.png")
    assert folders(file) == {tmp_path / "val"}  # the same file


def test_a_missing_image_is_not_taken_from_elsewhere(tmp_path: Path) -> None:
    for name in ("1.png", "2.png", "3.png"):
        picture(tmp_path / "val" / name)
        picture(tmp_path / "train" / name)
    file = annotations(tmp_path / "train" / "a.json", "1.png", "2.png", "3.png")
    (tmp_path / "train" / "2.png").unlink()
    with pytest.raises(
        DataError,
        match=r"1 of 3 images cannot .* image 1: there is no .*train/2\.png; they were looked for in .*train$",
    ):
        read(file)


def test_a_stray_image_does_not_make_a_folder(tmp_path: Path) -> None:
    names = [f"{n}.png" for n in range(5)]
    for name in names:
        picture(tmp_path / "images" / name)
    picture(tmp_path / "0.png")
    assert folders(annotations(tmp_path / "a.json", *names)) == {tmp_path / "images"}


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("images/x.png", "images/x.png"),  # Label Studio
        ("images\\x.png", "images/x.png"),
        ("images/my%20x.png", "images/my x.png"),
        ("/data/upload/1/x.png", "images/x.png"),
        ("C:\\Users\\me\\images\\x.png", "images/x.png"),
        ("/data/local-files/?d=a/x.png", "images/x.png"),
        ("./x.png", "x.png"),
        ("../images/x.png", "images/x.png"),
        ("val/x.png", "val/x.png"),
        ("val2017/x.png", "x.png"),
        ("a%20b.png", "a%20b.png"),  # called so
        (unicodedata.normalize("NFD", "ä.png"), unicodedata.normalize("NFC", "ä.png")),
        (unicodedata.normalize("NFC", "ä.png"), unicodedata.normalize("NFD", "ä.png")),
    ],
)
@pytest.mark.parametrize("file", ["result.json", "annotations/instances_default.json"])
def test_names_as_tools_export_them(tmp_path: Path, name: str, place: str, file: str) -> None:
    picture(tmp_path / place)
    found = read(annotations(tmp_path / file, name)).images[0].name
    assert Path(found).resolve() == (tmp_path / place).resolve()


def test_a_name_with_its_part_is_not_found_in_the_other(tmp_path: Path) -> None:
    for part in ("train", "val"):
        picture(tmp_path / part / "x.png")
    assert folders(annotations(tmp_path / "annotations" / "all.json", "images/train/x.png")) == {tmp_path / "train"}


def test_names_that_differ_in_their_folders_only_are_not_one_file(tmp_path: Path) -> None:
    picture(tmp_path / "x.png")
    with pytest.raises(DataError, match=r"image 1: .*x\.png is image 0 already, folders left off its name"):
        read(annotations(tmp_path / "a.json", "one/x.png", "two/x.png"))
    with pytest.raises(DataError, match=r"image 1: there is no .*gone\.png"):
        read(annotations(tmp_path / "a.json", "x.png", "gone.png"))


def test_folders_of_roboflow(tmp_path: Path) -> None:
    for part in ("train", "valid"):
        picture(tmp_path / part / "x.png")
        annotations(tmp_path / part / "_annotations.coco.json", "x.png")
    assert folders(tmp_path, "train") == {tmp_path / "train"}
    assert folders(tmp_path, "val") == {tmp_path / "valid"}
    with pytest.raises(DataError, match=r"no COCO annotations at .*instances_test\.json or .*test/_annotations\.coco"):
        find_coco(tmp_path, "test")


@pytest.mark.parametrize("name", ["a\0b.png", "x" * 5000, "/" * 300, "", "..", "\ud800.png", "a/" * 3000 + "x.png"])
def test_names_that_no_file_can_have(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match=r"1 of 1 images cannot be used, .* the first: image 0: there is no "):
        read(annotations(tmp_path / "a.json", name))
