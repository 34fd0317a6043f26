"""The linear segmentation probe on scenes whose classes are colours, and what a folder may not contain."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from evaluate.fakes import FakeBackbone
from mst.data.synthetic.scenes import SceneSet
from mst.errors import DataError, MstError, UsageError
from mst.evaluate.common.features import FeatureSettings
from mst.evaluate.common.protocol import fitting_size
from mst.evaluate.segmentation.data import (
    SegmentationData,
    SegmentationSet,
    scene_segmentation,
)
from mst.evaluate.segmentation.evaluation import SegmentationProtocol, evaluate_segmentation
from mst.evaluate.segmentation.folder import segmentation_folder
from mst.runtime.storage.results import Result

QUIET = FeatureSettings(forward_batch=3, workers=2, precision="fp32", progress=False)
SHORT = SegmentationProtocol(steps=80, batch_size=4, lr=0.05, loss_stride=2)


def halves(
    count: int, *, size: tuple[int, int] = (16, 24), void: int | None = None
) -> tuple[list[Tensor], list[Tensor]]:
    """Images whose left part is dark (class 0) and right part bright (class 1), cut at a patch border."""
    images, masks = [], []
    for index in range(count):
        mask = torch.zeros(size, dtype=torch.int64)
        mask[:, 4 * (1 + index % 4) :] = 1
        image = (40 + 150 * mask).expand(3, *size).to(torch.uint8)
        if void is not None:
            mask[:3] = void
        images.append(image)
        masks.append(mask)
    return images, masks


def halves_data(*, void: int | None = None) -> SegmentationData:
    sets = [SegmentationSet.from_tensors(*halves(count, void=void)) for count in (6, 4)]
    return SegmentationData(("dark", "bright", "nowhere"), sets[0], sets[1], void)


def linear(data: SegmentationData, protocol: SegmentationProtocol = SHORT) -> Result:
    return evaluate_segmentation(FakeBackbone(), data, protocol, settings=QUIET)


@pytest.mark.parametrize("void", [None, 255, 2])
def test_learns_what_the_patches_show(void: int | None) -> None:
    result = linear(halves_data(void=void))
    assert result.metrics["aacc"] > 90  # the borders are blurred by the upsampling
    assert result.metrics["miou"] > 80  # the class that is nowhere is left out
    assert result.extra["per_class"][2] == {"name": "nowhere", "iou": None, "accuracy": None}
    assert result.protocol["size"] == [16, 24]
    again = linear(halves_data(void=void))
    assert again == result


def test_images_of_several_sizes_are_scored_at_their_own() -> None:
    train, val = halves(6), halves(3, size=(17, 31))
    data = SegmentationData(
        ("dark", "bright"), SegmentationSet.from_tensors(*train), SegmentationSet.from_tensors(*val)
    )
    result = linear(data)
    assert result.metrics["aacc"] > 85


def test_scenes() -> None:
    data = scene_segmentation(SceneSet(0, 4, 32), SceneSet(0, 3, 32, start=4))
    image, mask = data.val.read(0)
    assert (image.shape, image.dtype) == ((3, 32, 32), torch.uint8)
    assert (mask.shape, mask.dtype) == ((32, 32), torch.int64)
    assert data.classes[0] == "background"
    result = linear(data)
    assert 0 < result.metrics["miou"] < 100


def test_more_steps_than_images_and_one_image() -> None:
    sets = [SegmentationSet.from_tensors(*halves(1)) for _ in range(2)]
    protocol = SegmentationProtocol(steps=2, size=(8, 8), loss_stride=3)
    result = linear(SegmentationData(("a", "b"), *sets), protocol)
    assert 0 <= result.metrics["miou"] <= 100


def test_fitting_size_is_the_nearest_multiple() -> None:
    assert fitting_size((360, 480), 16) == (352, 480)
    assert fitting_size((3, 13), 4) == (4, 12)


@pytest.mark.parametrize(
    ("images", "masks", "message"),
    [
        (halves(1)[0], [torch.zeros(3, 4)], r"image 0: mask \(3, 4\) and image \(16, 24\) differ"),
        (halves(1)[0], [torch.full((16, 24), 7)], r"image 0: 7 is no class of 0\.\.2"),
    ],
)
def test_a_mask_that_does_not_fit_is_named(images: list[Tensor], masks: list[Tensor], message: str) -> None:
    wrong = SegmentationSet.from_tensors(images, masks)
    with pytest.raises(MstError, match=message):
        linear(SegmentationData(("a", "b", "c"), wrong, wrong))


def test_a_size_that_patches_do_not_tile_is_refused() -> None:
    with pytest.raises(UsageError, match="--size 9x8 is not a multiple of the patch size 4"):
        linear(halves_data(), SegmentationProtocol(size=(9, 8)))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for part in ("images", "masks"):
        (tmp_path / part).mkdir()
    for index, (image, mask) in enumerate(zip(*halves(6, void=9), strict=True)):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(tmp_path / "images" / f"{index}.png")
        Image.fromarray(mask.numpy().astype(np.uint8)).save(tmp_path / "masks" / f"{index}.png")
    (tmp_path / "train.txt").write_text("0\n1\n2.png\n3\n\n")
    (tmp_path / "val.txt").write_text("4\n5\n")
    (tmp_path / "classes.json").write_text(json.dumps({"classes": ["dark", "bright"], "ignore_index": 9}))
    return tmp_path


def test_folder(folder: Path) -> None:
    data = segmentation_folder(folder)
    assert (len(data.train), len(data.val), data.ignore_index) == (4, 2, 9)
    result = linear(data)
    assert result.metrics["aacc"] > 90


def test_bad_folders_are_named(folder: Path) -> None:
    (folder / "val.txt").write_text("nobody\n")
    with pytest.raises(DataError, match="names nobody, but there is no"):
        segmentation_folder(folder)
    (folder / "val.txt").write_text("\n")
    with pytest.raises(DataError, match=r"val\.txt names no image"):
        segmentation_folder(folder)
    (folder / "val.txt").write_bytes(b"a\0b\0\0")
    with pytest.raises(DataError, match=r"val\.txt cannot be read as a list of image names"):
        segmentation_folder(folder)
    (folder / "classes.json").write_text("{}")
    with pytest.raises(DataError, match=r"classes\.json: expected"):
        segmentation_folder(folder)
    (folder / "classes.json").unlink()
    with pytest.raises(DataError, match=r"has no classes\.json"):
        segmentation_folder(folder)
    (folder / "classes.json").mkdir()
    with pytest.raises(DataError, match=r"classes\.json: expected"):
        segmentation_folder(folder)


def test_bad_masks_are_named(folder: Path) -> None:
    read = segmentation_folder(folder).train.read
    (folder / "masks" / "0.png").write_bytes(b"no picture")
    Image.new("L", (5, 6)).save(folder / "masks" / "1.png")
    Image.new("RGB", (24, 16), "red").save(folder / "masks" / "2.png")
    Image.new("L", (24, 16), 5).save(folder / "masks" / "3.png")
    messages = (
        "cannot be read as a mask",
        "mask is 6x5, its image is 16x24",
        "column 0 is no class number",
        "5 is no class of",
    )
    for index, message in enumerate(messages):
        with pytest.raises(DataError, match=message):
            read(index)
    shutil.rmtree(folder / "masks")
    with pytest.raises(DataError):
        read(0)
