"""Colour operations on float planes, one factor per crop: the photometric half of the augmentation.

The formulas are torchvision's (adjust_brightness, adjust_contrast, adjust_saturation, adjust_hue, rgb_to_grayscale,
solarize). The difference: crops stay in float32 from the resize to the end and are rounded once, where torchvision's
uint8 functions cut the fraction off after every operation; each operation is within one grey level of torchvision's.
Only single additions, products, minima and sums of whole numbers are used: the result for a crop is the same bits
whatever shares its batch and however many threads run.

Planes are float32 [C, n, h, w], 0-255, changed in place; factors are [n, 1, 1].
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from mst.views.parameters import OPERATIONS, Booleans, CropParameters

LUMINANCE = (0.2989, 0.587, 0.114)
"""torchvision's weights of red, green and blue."""


def luminance(planes: Tensor) -> Tensor:
    """Return the grey value of three colour planes [3, n, h, w] -> [n, h, w]."""
    grey = planes[0] * LUMINANCE[0]
    grey += planes[1] * LUMINANCE[1]
    grey += planes[2] * LUMINANCE[2]
    return grey


def adjust_brightness(planes: Tensor, factor: Tensor) -> None:
    """Multiply by the factor."""
    planes.mul_(factor).clamp_(0, 255)


def adjust_contrast(planes: Tensor, factor: Tensor) -> None:
    """Move away from (factor > 1) or towards the crop's mean grey value."""
    grey = luminance(planes) if len(planes) == 3 else planes.mean(0)  # [n, h, w]
    # The sum of whole numbers does not depend on its order.
    mean = grey.round_().sum((1, 2), dtype=torch.float64) / grey[0].numel()  # [n]
    offset = mean.float()[:, None, None] * (1 - factor)  # [n, 1, 1]
    planes.mul_(factor).add_(offset).clamp_(0, 255)


def adjust_saturation(planes: Tensor, factor: Tensor) -> None:
    """Move away from (factor > 1) or towards the pixel's grey value."""
    offset = luminance(planes).mul_(1 - factor)  # [n, h, w]
    planes.mul_(factor).add_(offset).clamp_(0, 255)


def adjust_hue(planes: Tensor, factor: Tensor) -> None:
    """Turn the hue, keeping value and chroma: RGB -> HSV -> RGB without a division.

    With m the largest and c the range of the three channels, and h the hue in sixths of a turn, a channel with its peak
    at hue p is m - clamp(|d| - c, 0, c), d = c * (the distance of h + shift from p, wrapped into -3..3). Since h is a
    difference of two channels divided by c, only c * h is needed.
    """
    red, green, blue = planes  # [n, h, w]
    largest = torch.maximum(torch.maximum(red, green), blue)
    chroma = largest - torch.minimum(torch.minimum(red, green), blue)
    green_hue = (blue - red).add_(chroma, alpha=2)
    blue_hue = (red - green).add_(chroma, alpha=4)
    hue = torch.where(largest == red, green - blue, torch.where(largest == green, green_hue, blue_hue))  # c * h
    shift = factor * 6  # [n, 1, 1] turns -> sixths of a turn
    period, half = chroma * 6, chroma * 3
    for plane, peak in zip(planes, (0, 2, 4), strict=True):
        distance = hue + chroma * (shift - peak)  # in -7c..8c
        distance = torch.where(distance > half, distance - period, distance)
        distance = torch.where(distance < -half, distance + period, distance)
        fall = torch.minimum(distance.abs_().sub_(chroma).clamp_(min=0), chroma)
        torch.sub(largest, fall, out=plane)


def turn_grey(planes: Tensor) -> None:
    """Replace the colours by their luminance."""
    planes.copy_(luminance(planes).expand_as(planes))


def solarize(planes: Tensor) -> None:
    """Invert the values from 128 on: x -> min(x, 255 - x)."""
    torch.minimum(planes, 255 - planes, out=planes)


def on_rows(planes: Tensor, rows: Booleans, operation: Callable[[Tensor], None]) -> None:
    """Apply an operation that works in place to some of the n crops of [C, n, h, w]."""
    if rows.all():
        operation(planes)
    elif rows.any():
        numbers = torch.from_numpy(rows.nonzero()[0])
        some = planes[:, numbers]
        operation(some)
        planes[:, numbers] = some


_ADJUST = {
    "brightness": adjust_brightness,
    "contrast": adjust_contrast,
    "saturation": adjust_saturation,
    "hue": adjust_hue,
}


def jitter(planes: Tensor, parameters: CropParameters) -> None:
    """Apply the four jitter operations to each crop in the crop's own order; those that change nothing are skipped.

    Args:
        planes: float32 [C, n, h, w].
        parameters: of the n crops.
    """
    for place in range(len(OPERATIONS)):
        for number, name in enumerate(OPERATIONS):
            factors = getattr(parameters, name)
            unchanged = 0.0 if name == "hue" else 1.0
            rows = (parameters.order[:, place] == number) & (factors != unchanged)
            factor = torch.from_numpy(factors[rows]).float()[:, None, None]
            on_rows(planes, rows, partial(_ADJUST[name], factor=factor))
