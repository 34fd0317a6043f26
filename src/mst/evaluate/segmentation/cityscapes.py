"""Cityscapes in its own folder layout, with the 19 classes of its benchmark.

Source: Cordts et al. 2016; names, label ids and train ids from cityscapesScripts' `helpers/labels.py`. Masks are
`*_gtFine_labelIds.png`; label ids outside the benchmark are void. Letters: C channels, H W pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from mst.data.sources import ImageIndex
from mst.data.value_range import BY_TYPE, Scale
from mst.errors import DataError
from mst.evaluate.common.orientation import Frame, mask_frames
from mst.evaluate.segmentation.data import SegmentationData, SegmentationSet, even_pairs
from mst.evaluate.segmentation.mask_files import mask_size, read_values
from mst.runtime.images import Header

VOID = 255
"""Train id of everything that is not scored."""
LAST_ID = 33
"""The highest label id that occurs in a mask."""
TRAIN_CLASSES = {
    7: "road",
    8: "sidewalk",
    11: "building",
    12: "wall",
    13: "fence",
    17: "pole",
    19: "traffic light",
    20: "traffic sign",
    21: "vegetation",
    22: "terrain",
    23: "sky",
    24: "person",
    25: "rider",
    26: "car",
    27: "truck",
    28: "bus",
    31: "train",
    32: "motorcycle",
    33: "bicycle",
}
"""Label id -> name; the train id is the position."""
IMAGES, MASKS = "leftImg8bit", "gtFine"


def is_cityscapes(root: Path) -> bool:
    """Whether a folder has one of the two parts of the layout."""
    return (root / IMAGES).is_dir() or (root / MASKS).is_dir()


def cityscapes_folder(
    root: Path,
    *,
    channels: int = 3,
    scale: Scale = BY_TYPE,
    annotations: Frame | None = None,
    limits: tuple[int | None, int | None] = (None, None),
) -> SegmentationData:
    """Return training and validation set of a folder with `leftImg8bit/` and `gtFine/`; `test` has no public masks.

    The arguments are those of `segmentation_folder`.

    Raises:
        DataError: a part or a mask is missing, or a split is empty.
    """
    for part in (IMAGES, MASKS):
        if not (root / part).is_dir():
            raise DataError(f"{root} has no {part}/: Cityscapes needs {IMAGES}/ and {MASKS}/ side by side")
    pairs = [even_pairs(_split(root, split), limit) for split, limit in zip(("train", "val"), limits, strict=True)]
    headers, frames = mask_frames([*pairs[0], *pairs[1]], mask_size, annotations)
    train, val = (
        SegmentationSet(
            ImageIndex.of(image for image, _ in part),
            _masks(part, headers, frames),
            channels,
            scale,
            tuple(mask for _, mask in part),
        )
        for part in pairs
    )
    meaning = (f"annotations {annotations}",) if annotations is not None and headers else ()
    return SegmentationData(tuple(TRAIN_CLASSES.values()), train, val, VOID, meaning)


def _masks(
    pairs: Sequence[tuple[Path, Path]], headers: Mapping[Path, Header], frames: Mapping[tuple[Path, Path], Frame]
) -> Callable[[int, tuple[int, int]], Tensor]:
    """Return what reads the mask of a pair."""

    def mask(index: int, size: tuple[int, int]) -> Tensor:
        image, path = pairs[index]
        frame = frames.get(pairs[index], "displayed")
        return train_ids(read_values(path, size, image=headers.get(image), frame=frame), path)

    return mask


def _split(root: Path, split: str) -> list[tuple[Path, Path]]:
    """Return the images of a split with their masks."""
    folder = root / IMAGES / split
    images = sorted(folder.glob(f"*/*_{IMAGES}.png"))
    if not images:
        raise DataError(f"{folder} has no CITY/*_{IMAGES}.png: unpack {IMAGES}_trainvaltest.zip into {root}")
    pairs = [(image, _mask_of(root, split, image)) for image in images]
    for image, mask in pairs:
        if not mask.is_file():
            raise DataError(f"{image} has no mask {mask}: unpack {MASKS}_trainvaltest.zip into {root}")
    return pairs


def _mask_of(root: Path, split: str, image: Path) -> Path:
    name = f"{image.name.removesuffix(f'_{IMAGES}.png')}_{MASKS}_labelIds.png"
    return root / MASKS / split / image.parent.name / name


def train_ids(ids: Tensor, path: Path) -> Tensor:
    """Return train ids [H, W] for label ids [H, W].

    Raises:
        DataError: a value is no label id.
    """
    if bool(((ids < 0) | (ids > LAST_ID)).any()):
        value = int(ids[(ids < 0) | (ids > LAST_ID)][0])
        raise DataError(f"{path}: {value} is no label id of Cityscapes, 0..{LAST_ID}")
    table = torch.full((LAST_ID + 1,), VOID, dtype=torch.int64)
    table[list(TRAIN_CLASSES)] = torch.arange(len(TRAIN_CLASSES))
    return table[ids]
