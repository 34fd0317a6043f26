"""Cityscapes' folder layout, its label ids, and its scores."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mst.errors import DataError
from mst.evaluate.common.metrics import SegmentationScores, confusion_matrix
from mst.evaluate.segmentation.cityscapes import (
    LAST_ID,
    TRAIN_CLASSES,
    VOID,
    cityscapes_folder,
    is_cityscapes,
    train_ids,
)
from mst.runtime.images import turned
from reference.cityscapes_scores import label_scores, mean_score


def write_city(root: Path, split: str, city: str, count: int, *, size: tuple[int, int] = (16, 24)) -> None:
    draw = np.random.default_rng(count)
    for index in range(count):
        name = f"{city}_{index:06d}_000019"
        for part, kind, pixels in (
            ("leftImg8bit", "leftImg8bit", draw.integers(0, 256, (*size, 3))),
            ("gtFine", "gtFine_labelIds", draw.integers(0, LAST_ID + 1, size)),
            ("gtFine", "gtFine_instanceIds", draw.integers(0, 60000, size)),
        ):
            path = root / part / split / city / f"{name}_{kind}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            kept = np.uint16 if "instance" in kind else np.uint8
            Image.fromarray(pixels.astype(kept)).save(path)


@pytest.fixture
def cities(tmp_path: Path) -> Path:
    write_city(tmp_path, "train", "aachen", 2)
    write_city(tmp_path, "train", "bochum", 1)
    write_city(tmp_path, "val", "munster", 2)
    return tmp_path


def test_folder(cities: Path) -> None:
    assert is_cityscapes(cities)
    data = cityscapes_folder(cities)
    assert (len(data.train), len(data.val), len(data.classes), data.ignore_index) == (3, 2, 19, VOID)
    assert data.classes[0] == "road"
    assert data.classes[-1] == "bicycle"
    assert [Path(name).parent.name for name in map(data.train.name, range(3))] == ["aachen", "aachen", "bochum"]
    image, mask = data.train.read(2)
    assert (image.shape, mask.shape) == ((3, 16, 24), (16, 24))
    raw = np.asarray(Image.open(cities / "gtFine/train/bochum/bochum_000000_000019_gtFine_labelIds.png"))
    order = list(TRAIN_CLASSES)
    expected = [[order.index(value) if value in order else VOID for value in row] for row in raw.tolist()]
    assert mask.tolist() == expected


def test_ids_are_those_of_the_public_table() -> None:
    assert train_ids(torch.tensor([7, 8, 11, 0, 24, 33, 29]), Path("x")).tolist() == [0, 1, 2, VOID, 11, 18, VOID]


def test_wrong_folders_are_named(cities: Path, tmp_path: Path) -> None:
    mask = cities / "gtFine/val/munster/munster_000001_000019_gtFine_labelIds.png"
    image = Image.open(mask)
    Image.fromarray(np.full((16, 24), 255, np.uint8)).save(mask)
    with pytest.raises(DataError, match=r"munster_000001_000019_gtFine_labelIds.png: 255 is no label id"):
        cityscapes_folder(cities).val.read(1)
    image.resize((8, 8)).save(mask)
    with pytest.raises(DataError, match=r"labelIds.png: mask is 8x8, its image is 16x24"):
        cityscapes_folder(cities).val.read(1)
    mask.unlink()
    with pytest.raises(DataError, match=r"munster_000001_000019_leftImg8bit.png has no mask .*labelIds.png"):
        cityscapes_folder(cities)
    for path in (cities / "leftImg8bit/val/munster").iterdir():
        path.unlink()
    with pytest.raises(DataError, match=r"leftImg8bit/val has no CITY/\*_leftImg8bit.png"):
        cityscapes_folder(cities)
    other = tmp_path / "other"
    (other / "gtFine").mkdir(parents=True)
    assert is_cityscapes(other)
    with pytest.raises(DataError, match=r"other has no leftImg8bit/"):
        cityscapes_folder(other)


@pytest.mark.parametrize("displayed", [True, False])
def test_masks_of_turned_images(cities: Path, displayed: bool, capsys: pytest.CaptureFixture[str]) -> None:
    """Orientation 6 tells by its size what its mask is of, 3 does not and follows it."""
    ids = np.zeros((16, 24), np.uint8)
    ids[:, :12] = 24
    for name, orientation in (("000000", 6), ("000001", 3)):
        stem = f"train/aachen/aachen_{name}_000019"
        exif = Image.Exif()
        exif[0x0112] = orientation
        Image.fromarray(ids * 9).save(cities / f"leftImg8bit/{stem}_leftImg8bit.png", exif=exif)
        mask = turned(ids, orientation) if displayed else ids
        Image.fromarray(mask).save(cities / f"gtFine/{stem}_gtFine_labelIds.png")

    def agrees(**said: Any) -> list[bool]:
        pairs = [cityscapes_folder(cities, **said).train.read(index) for index in range(2)]
        return [((image[0] > 0) == (mask == 11)).all().item() for image, mask in pairs]

    assert agrees() == [True, True]
    said = " ".join(capsys.readouterr().err.split())
    frame = "displayed" if displayed else "stored"
    assert f"EXIF turns 2 of 5 images, the first: {cities}" in said
    assert f"2 as {frame} (of 1 the size does not tell, they are taken as {frame})" in said
    assert agrees(annotations=frame) == [True, True]
    assert not capsys.readouterr().err
    with pytest.raises(DataError, match=r"mask is .* EXIF turns the image \(orientation 6\)"):
        agrees(annotations="stored" if displayed else "displayed")
    assert cityscapes_folder(cities, annotations=frame).fingerprint() != cityscapes_folder(cities).fingerprint()


def test_limits_spare_the_other_files(cities: Path) -> None:
    data = cityscapes_folder(cities, limits=(2, 1))
    assert (len(data.train), len(data.val)) == (2, 1)


@pytest.mark.parametrize("seed", range(6))
def test_scores_equal_the_benchmarks_definition(seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    present = torch.randperm(LAST_ID + 1, generator=draw)[:12]  # most of the classes are absent, some labels are void
    truth = present[torch.randint(12, (500,), generator=draw)]
    kept = [label for label in TRAIN_CLASSES if label in present.tolist()] or [7]
    guesses = torch.tensor([*kept, 33])[torch.randint(len(kept) + 1, (500,), generator=draw)]
    counts = confusion_matrix(
        train_ids(guesses, Path("x")), train_ids(truth, Path("x")), len(TRAIN_CLASSES), ignore_index=VOID
    )
    found = SegmentationScores.from_confusion(counts)
    expected = label_scores(truth.tolist(), guesses.tolist(), list(TRAIN_CLASSES))
    have = {label: iou for label, iou in zip(TRAIN_CLASSES, found.iou, strict=True) if not math.isnan(iou)}
    assert have == pytest.approx({label: 100 * score for label, score in expected.items()}, abs=1e-5)
    assert found.miou == pytest.approx(100 * mean_score(expected), abs=1e-5)
