"""A second look at pairs that are alike when small: do they share their fine detail, too?

Two clean solar cells, or two pages of one form, are the same at 32 x 32 pixels, and different images. Copies share what
lies between the coarse and the fine: what a picture of `SIDE` pixels has and one of `COARSE` pixels has not.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image

from mst.data.decoding import UnreadableImage, read_image
from mst.data.formats.jpeg import Detail
from mst.data.sources import ImageSource
from mst.data.value_range import Scale

SIDE, COARSE = 96, 24
SHARED = 0.75
"""Least correlation of the detail of two copies."""
FAINT = 1.5
"""Levels of standard deviation below which there is no detail to compare."""
KEPT = 2048
"""Pictures that are kept in memory."""

Picture = npt.NDArray[np.float32]


def detail_checker(
    images: ImageSource, channels: int, scale: Scale
) -> Callable[[Sequence[int], Sequence[int]], list[bool]]:
    """Return a function that says which pairs of positions share their detail; it reads the images again."""
    known: OrderedDict[int, Picture | None] = OrderedDict()
    enough = Detail(4 * SIDE * SIDE, SIDE)

    def look(position: int) -> Picture | None:
        if position not in known:
            try:
                pixels = read_image(images, position, channels=channels, enough=enough, scale=scale)
                known[position] = detail_of(pixels.float().mean(0).round().byte().numpy())
            except UnreadableImage:  # it was readable a minute ago
                known[position] = None
            while len(known) > KEPT:
                known.popitem(last=False)
        return known[position]

    return lambda ones, others: [
        shared(look(one), look(other)) >= SHARED for one, other in zip(ones, others, strict=True)
    ]


def detail_of(grey: npt.NDArray[np.uint8]) -> Picture | None:
    """Return the fine part of an image [H, W], None where it is too small or too smooth to have one: [SIDE, SIDE]."""
    if min(grey.shape) < SIDE // 2:
        return None
    picture = Image.fromarray(np.ascontiguousarray(grey)).convert("F")
    small = picture.resize((SIDE, SIDE), Image.Resampling.BILINEAR)
    coarse = small.resize((COARSE, COARSE), Image.Resampling.BILINEAR).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    fine = np.asarray(small) - np.asarray(coarse)
    fine = fine - fine.mean()
    deviation = float(fine.std())
    return None if deviation < FAINT else (fine / deviation).astype(np.float32)


def shared(one: Picture | None, other: Picture | None) -> float:
    """Return the correlation of two details; 1 where one has none."""
    return 1.0 if one is None or other is None else float((one * other).mean())
