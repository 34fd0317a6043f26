"""Images that a run does not learn from: which they are, and the crops that scores without labels are measured on."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from mst.data.decoding import UnreadableImage
from mst.data.sources import ImageSource, even_positions
from mst.data.value_range import Scale
from mst.evaluate.common.image_sets import ImageSet, LabelledSets
from mst.evaluate.common.protocol import random_resized_crop
from mst.runtime.seeding import generator

OF_VALIDATION = 256
"""Images that are taken where validation images serve."""
FEWEST, MOST_SHARE = 16, 0.1
"""Images below which a score says nothing, and the share of all images that is kept out of training at most."""
LEAST_AREA = 0.25
"""Share of an image that a crop covers at least, so that two crops of it mostly overlap."""
PAIR_BYTES = 1 << 27
"""Bytes of all crops at most: 128 MB, 256 images of 3 channels at 295 px."""


def set_apart(images: ImageSource, count: int) -> tuple[ImageSource, ImageSource | None]:
    """Divide images into those to learn from and `count` others at even distances, at most `MOST_SHARE` of all.

    The second is None where that leaves fewer than `FEWEST` images.
    """
    count = min(count, int(MOST_SHARE * len(images)))
    if count < FEWEST:
        return images, None
    out = even_positions(len(images), count)
    rest = np.delete(np.arange(len(images), dtype=np.int64), out)
    return images.only(rest), images.only(out)


def held_out_set(
    apart: ImageSource | None, labelled: LabelledSets | None, *, channels: int, scale: Scale
) -> ImageSet | None:
    """Return the images for scores without labels: those set apart, else validation images; None = there are none."""
    if apart is not None:
        return ImageSet(apart, torch.zeros(len(apart), dtype=torch.int64), channels, scale)
    if labelled is None or len(labelled.val) < FEWEST:
        return None
    return labelled.val.subset(even_positions(len(labelled.val), OF_VALIDATION).tolist())


def crop_pairs(images: ImageSet | None, size: tuple[int, int]) -> Tensor | None:
    """Return two random crops of each image, uint8 [2, n, C, H, W]; None where fewer than two can be read.

    The draws do not depend on the run's seed: all runs with these images sit the same exam.

    Args:
        images: those that are not learned from; None = there are none.
        size: (H, W) of a crop.
    """
    if images is None:
        return None
    most = max(2, PAIR_BYTES // (2 * images.channels * size[0] * size[1]))
    pairs = []
    for position in even_positions(len(images), most).tolist():
        try:
            image = images.read(position)
        except UnreadableImage:
            continue
        draws = [generator(0, "label-free crop", position, side) for side in range(2)]
        pairs.append(torch.stack([random_resized_crop(image, size, draw, least_area=LEAST_AREA) for draw in draws]))
    return torch.stack(pairs, dim=1) if len(pairs) > 1 else None
