"""Boxes around patches and in pixels.

Letters: h w patches of a grid, H W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Box = tuple[float, float, float, float]
"""(x0, y0, x1, y1) in pixels, ends exclusive."""


def largest_component_box(patches: NDArray[np.bool_]) -> tuple[int, int, int, int]:
    """Return the box (x0, y0, x1, y1), in patches, around the largest 4-connected component.

    Of several of that size, the one that begins highest counts, then the leftmost. At least one patch must be chosen.
    """
    height, width = patches.shape
    unseen = patches.copy()
    best: list[tuple[int, int]] = []
    for start in zip(*np.nonzero(patches), strict=True):
        if not unseen[start]:
            continue
        unseen[start] = False
        component, position = [(int(start[0]), int(start[1]))], 0
        while position < len(component):
            y, x = component[position]
            position += 1
            for near in ((y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)):
                if 0 <= near[0] < height and 0 <= near[1] < width and unseen[near]:
                    unseen[near] = False
                    component.append(near)
        if len(component) > len(best):
            best = component
    rows, columns = zip(*best, strict=True)
    return min(columns), min(rows), max(columns) + 1, max(rows) + 1


def to_pixel_box(box: tuple[int, int, int, int], grid: Sequence[int], size: tuple[int, int]) -> Box:
    """Return a box in patches of a grid (h, w) as a box in pixels of an image (H, W)."""
    across, down = size[1] / grid[1], size[0] / grid[0]
    return box[0] * across, box[1] * down, box[2] * across, box[3] * down


def box_iou(first: Box, second: Box) -> float:
    """Return intersection over union of two boxes."""
    width = max(0.0, min(first[2], second[2]) - max(first[0], second[0]))
    height = max(0.0, min(first[3], second[3]) - max(first[1], second[1]))
    areas = [(x1 - x0) * (y1 - y0) for x0, y0, x1, y1 in (first, second)]
    return width * height / (sum(areas) - width * height)
