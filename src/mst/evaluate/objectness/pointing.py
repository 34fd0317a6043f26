"""Where attention points, without a threshold: its peak, and the share of it that lies on objects.

Sources: the pointing game (Zhang et al. 2016, "Top-down Neural Attention by Excitation Backprop", section 4.1), and its
form with energies (Wang et al. 2020, "Score-CAM", section 4.2). Differs: objects of all classes count, as no class is
asked for; the peak must lie on an object's mask, without a margin around it.
Letters: h w patches, H W pixels.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

Mask = NDArray[np.bool_]


class Pointing(NamedTuple):
    """What the importance of one image's patches points at.

    Attributes:
        pointing: whether the middle of the most important patch lies on an object (of equal ones, the first); None
            where it lies on ignored pixels.
        pointing_centre: the same of the image's middle.
        mass_inside: share of the importance that lies on objects, each patch's spread evenly over its pixels.
        mass_inside_even: that of an importance that is the same everywhere: the share of the image that is object.
    """

    pointing: bool | None = None
    pointing_centre: bool | None = None
    mass_inside: float | None = None
    mass_inside_even: float | None = None


def point(importance: Tensor, objects: Mask, counted: Mask) -> Pointing:
    """Return what an importance [h, w], not negative, points at.

    Args:
        importance: of the patches.
        objects: bool [H, W], pixels of any object that counts.
        counted: bool [H, W], pixels that count.
    """
    height, width = importance.shape
    row, column = divmod(int(importance.flatten().argmax()), width)
    inside, all_counted = _shares(objects, (height, width)), _shares(counted, (height, width))  # [h, w]
    return Pointing(
        pointing=_at(objects, counted, (row + 0.5) / height, (column + 0.5) / width),
        pointing_centre=_at(objects, counted, 0.5, 0.5),
        mass_inside=_mass(importance.double(), inside, all_counted),
        mass_inside_even=_mass(torch.ones_like(inside), inside, all_counted),
    )


def _at(objects: Mask, counted: Mask, down: float, across: float) -> bool | None:
    """Return whether the pixel at a place, in sides of the image, is one of an object; None if it does not count."""
    y, x = int(down * objects.shape[0]), int(across * objects.shape[1])
    return bool(objects[y, x]) if counted[y, x] else None


def _shares(pixels: Mask, grid: tuple[int, int]) -> Tensor:
    """Return which share of the pixels that each patch touches is set [h, w], float64."""
    return F.adaptive_avg_pool2d(torch.from_numpy(pixels)[None].double(), grid)[0]


def _mass(importance: Tensor, inside: Tensor, counted: Tensor) -> float | None:
    total = float((importance * counted).sum())
    return float((importance * inside).sum()) / total if total > 0 else None
