"""Lists, class tables and turned images of segmentation folders as people have them, and what one bad pair costs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from evaluate.common.test_content import write_pairs
from evaluate.fakes import FakeBackbone
from mst.errors import DataError
from mst.evaluate.common.features import FeatureSettings
from mst.evaluate.segmentation.data import SegmentationData
from mst.evaluate.segmentation.evaluation import SegmentationProtocol, evaluate_segmentation
from mst.evaluate.segmentation.folder import read_classes, segmentation_folder
from mst.runtime.storage.results import Result


@pytest.mark.parametrize(
    "line",
    [
        "a", "a.png", "a.jpg", "A.PNG".replace("A", "a"), "images/a.png", "images\\a.png", '"a.png"', "./a",
        "data/set/images/a.png", "a.png a.png", "images/a.png masks/a.png", "/images/a.png /masks/a.png",
        "images/a.png,masks/a.png", "a\ta", "'images/a.png' 'masks/a.png'",
    ],
)  # fmt: skip
def test_lines(tmp_path: Path, line: str) -> None:
    write_pairs(tmp_path)
    for encoding in ("utf-8", "utf-8-sig", "utf-16"):
        (tmp_path / "train.txt").write_text(f"{line}\r\nb\r\n", encoding=encoding)
        data = segmentation_folder(tmp_path)
        assert [tuple(path.name for path in pair) for pair in data.train.files] == [("a.png",) * 2, ("b.png",) * 2]


def test_absolute_names_and_remarks(tmp_path: Path) -> None:
    root = write_pairs(tmp_path)
    (root / "train.txt").write_text(f"# train\n{root}/images/a.png\n{root}/images/b.png {root}/masks/b.png\n")
    data = segmentation_folder(root)
    assert [mask.name for _, mask in data.train.files] == ["a.png", "b.png"]
    assert data.train.missing == ()


@pytest.mark.parametrize("word", ["_mask", "_gt", "_labelIds", "_L", "-seg", "_gtFine_labelIds"])
def test_words_behind_the_names_of_masks(tmp_path: Path, word: str) -> None:
    root = write_pairs(tmp_path)
    (root / "masks" / "a.png").rename(root / "masks" / f"a{word}.png")
    (root / "images" / "a.png").rename(root / "images" / "a.PNG")
    data = segmentation_folder(root)
    assert [path.name for path in data.train.files[0]] == ["a.PNG", f"a{word}.png"]
    shutil.copy(root / "masks" / "b.png", root / "masks" / "a.png")
    with pytest.raises(DataError, match=rf"names a, which may be .*/a\.png or .*/a{word}\.png"):
        segmentation_folder(root)


def test_an_image_that_is_called_like_a_mask(tmp_path: Path) -> None:
    root = write_pairs(tmp_path)
    for part in ("images", "masks"):
        shutil.copy(root / part / "b.png", root / part / "a_mask.png")
    (root / "train.txt").write_text("a\na_mask\n")
    assert [mask.stem for _, mask in segmentation_folder(root).train.files] == ["a", "a_mask"]


def test_sub_folders(tmp_path: Path) -> None:
    root = write_pairs(tmp_path)
    for part, name in (("images", "a"), ("masks", "a"), ("images", "b")):
        (root / part / "deep").mkdir(exist_ok=True)
        (root / part / f"{name}.png").rename(root / part / "deep" / f"{name}.png")
    (root / "train.txt").write_text("deep/a.png\nb\n")
    data = segmentation_folder(root)
    assert [str(mask.relative_to(root)) for _, mask in data.train.files] == ["masks/deep/a.png", "masks/b.png"]
    shutil.copy(root / "images" / "c.png", root / "images" / "b.png")
    (root / "train.txt").write_text("deep/b\nb\n")
    with pytest.raises(DataError, match=r"masks/b\.png would be the mask of .*deep/b\.png and of .*images/b\.png"):
        segmentation_folder(root)
    (root / "images" / "c.jpg").write_bytes((root / "images" / "c.png").read_bytes())
    (root / "train.txt").write_text("c\n")
    with pytest.raises(DataError, match=r"names c, which may be .*/c\.(jpg|png) or .*/c\."):
        segmentation_folder(root)


@pytest.mark.parametrize(
    "content",
    [
        {"classes": ["x", "y"], "colors": [[0, 0, 0], [255, 128, 0]]},
        {"classes": ["x", "y"], "palette": ["#000000", "ff8000"]},
        {"classes": ["x", "y"], "colours": {"y": [255, 128, 0], "x": [0, 0, 0]}},
        [{"name": "x", "color": [0, 0, 0]}, {"name": "y", "color": "#FF8000"}],
        "x:0,0,0::\ny:255,128,0:parts:actions\n",
        "# label:color_rgb:parts:actions\nx:0,0,0::\ny:255,128,0::\n",
        "0 0 0\tx\n255 128 0\ty\n",
    ],
)
def test_colour_tables(tmp_path: Path, content: object) -> None:
    if isinstance(content, str):
        (tmp_path / "labelmap.txt").write_text(content)
    else:
        (tmp_path / "classes.json").write_text(json.dumps(content))
    labels = read_classes(tmp_path)
    assert labels.names == ("x", "y")
    assert labels.colours == {0: 0, 0xFF8000: 1}


@pytest.mark.parametrize(
    ("colours", "message"),
    [
        ([[0, 0, 0]], "2 classes, but not as many"),
        ([[0, 0, 0], [0, 0, 0]], "the same colour"),
        ([[0, 0, 0], [0, 0, 256]], r"\[0, 0, 256\] is no colour"),
        ([[0, 0, 0], "red"], "'red' is no colour"),
        ({"x": [0, 0, 0]}, r"classes\.json: expected"),
        (7, "2 classes, but not as many"),
    ],
)
def test_wrong_colour_tables(tmp_path: Path, colours: object, message: str) -> None:
    (tmp_path / "classes.json").write_text(json.dumps({"classes": ["x", "y"], "colors": colours}))
    with pytest.raises(DataError, match=message):
        read_classes(tmp_path)


def turned_pairs(root: Path, orientations: dict[str, int], *, displayed: bool, size: tuple[int, int] = (8, 12)) -> Path:
    """Images whose bright corner is class 1; masks of the stored pixels or of the displayed ones."""
    write_pairs(root)
    for name, orientation in orientations.items():
        stored = np.zeros(size, np.uint8)
        stored[:4, :4] = 1
        exif = Image.Exif()
        exif[0x0112] = orientation
        path = root / "images" / f"{name}.png"
        Image.fromarray(200 * stored).convert("RGB").save(path, exif=exif)
        from PIL import ImageOps

        mask = np.asarray(ImageOps.exif_transpose(Image.open(path)))[..., 0] // 200 if displayed else stored
        Image.fromarray(mask).save(root / "masks" / f"{name}.png")
    return root


def agrees(data: SegmentationData) -> list[bool]:
    pairs = [part.read(index) for part in (data.train, data.val) for index in range(len(part))]
    return [((image[0] > 100) == (mask == 1)).all().item() for image, mask in pairs]


@pytest.mark.parametrize("displayed", [True, False])
def test_masks_of_turned_images(tmp_path: Path, displayed: bool, capsys: pytest.CaptureFixture[str]) -> None:
    """Orientation 3 does not tell: it follows the others (6 and 8), whose sizes do."""
    root = turned_pairs(tmp_path, {"a": 6, "b": 3, "c": 8}, displayed=displayed)
    assert agrees(segmentation_folder(root)) == [True] * 3
    said = " ".join(capsys.readouterr().err.split())
    frame = "displayed" if displayed else "stored"
    assert "EXIF turns 3 of 3 images" in said
    assert f"3 as {frame} (of 1 the size does not tell, they are taken as {frame})" in said
    assert "--annotations displayed or stored" in said
    assert said.count("warning") == 1


def test_the_switch_for_masks_that_do_not_tell(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = turned_pairs(tmp_path, {"a": 3, "b": 2, "c": 4}, displayed=False)
    assert agrees(segmentation_folder(root)) == [False] * 3
    assert "3 as displayed" in capsys.readouterr().err
    stored = segmentation_folder(root, annotations="stored")
    assert agrees(stored) == [True] * 3
    assert not capsys.readouterr().err
    assert stored.fingerprint() != segmentation_folder(root).fingerprint()


def many_pairs(root: Path, train: int = 30, val: int = 21) -> Path:
    write_pairs(root)
    for split, count in (("train", train), ("val", val)):
        names = [f"{split}{index}" for index in range(count)]
        for number, name in enumerate(names):
            mask = np.zeros((8, 8), np.uint8)
            mask[:, 4:] = 1
            noise = np.random.default_rng([number, len(split)]).integers(0, 20, (8, 8), np.uint8)
            Image.fromarray(mask * 200 + noise).convert("RGB").save(root / "images" / f"{name}.png")
            Image.fromarray(mask).save(root / "masks" / f"{name}.png")
        (root / f"{split}.txt").write_text("\n".join(names))
    return root


def evaluated(root: Path, share: float = 0.05, **protocol: object) -> Result:
    settings = FeatureSettings(forward_batch=4, workers=1, precision="fp32", progress=False, max_unreadable_share=share)
    steps = SegmentationProtocol(steps=3, batch_size=4, lr=0.05, loss_stride=1, **protocol)  # type: ignore[arg-type]
    return evaluate_segmentation(FakeBackbone(), segmentation_folder(root), steps, settings=settings)


@pytest.mark.parametrize("stride", [None, (4, 4)])
def test_a_bad_pair_costs_itself(
    tmp_path: Path, stride: tuple[int, int] | None, capsys: pytest.CaptureFixture[str]
) -> None:
    root = many_pairs(tmp_path)
    (root / "images" / "train0.png").write_bytes(b"no picture")
    Image.fromarray(np.full((8, 8), 9, np.uint8)).save(root / "masks" / "val3.png")
    row = evaluated(root, stride=stride, size=(8, 8))
    assert (row.extra["train_images"], row.extra["val_images"]) == (29, 20)
    assert row.extra["left_out"] == {"train": 1, "val": 1}
    assert [("train0" in line, "val3" in line) for line in row.extra["unreadable"]] == [(True, False), (False, True)]
    said = capsys.readouterr().err
    assert "1 of 30 training pairs cannot be used (0 missing) and are left out" in said
    assert "1 of 21 validation pairs cannot be used (0 missing) and are left out: the score is of the other 20" in said
    assert "9 is no class of 0..1" in said
    with pytest.raises(DataError, match=r"1 of 21 validation pairs cannot be used \(0 missing\), at most 0% "):
        evaluated(root, 0.0, stride=stride, size=(8, 8))


def test_missing_pairs_count_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = many_pairs(tmp_path)
    (root / "masks" / "val5.png").unlink()
    row = evaluated(root)
    assert (row.extra["val_images"], row.extra["left_out"]) == (20, {"train": 0, "val": 1})
    assert "(1 missing)" in capsys.readouterr().err
    (root / "images" / "val6.png").unlink()
    with pytest.raises(DataError, match=r"2 of 21 validation pairs cannot be used \(2 missing\), at most 5% .*val5"):
        evaluated(root)


def test_validation_images_that_are_training_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = many_pairs(tmp_path, 4, 4)
    evaluated(root)
    assert "training images too" not in capsys.readouterr().err
    for index in range(3):
        shutil.copy(root / "images" / f"train{index}.png", root / "images" / f"val{index}.png")
    evaluated(root)
    assert "3 of the 4 validation images looked at are training images too" in capsys.readouterr().err
    (root / "val.txt").write_text((root / "train.txt").read_text())
    evaluated(root)
    assert "4 of the 4 validation images looked at are training images too" in capsys.readouterr().err


@pytest.mark.parametrize("value", ["1e999", "-1e999", "NaN", "1.5", "true", '"x"', "[]", "1" + 40 * "0", "2147483648"])
def test_a_value_to_ignore_is_a_whole_number(value: str, tmp_path: Path) -> None:
    (tmp_path / "classes.json").write_text(f'{{"classes": ["x", "y"], "ignore_index": {value}}}')
    with pytest.raises(DataError, match=r"ignore_index .*: must be a whole number"):
        read_classes(tmp_path)


@pytest.mark.parametrize(("value", "read"), [("255", 255), ("255.0", 255), ('"255"', 255), ("-1", -1), ("null", None)])
def test_values_to_ignore_as_tools_write_them(value: str, read: int | None, tmp_path: Path) -> None:
    (tmp_path / "classes.json").write_text(f'{{"classes": ["x", "y"], "ignore_index": {value}}}')
    assert read_classes(tmp_path).ignore_index == read
