"""Colour operations on float planes, one factor per crop: the photometric half of the augmentation.

The formulas are torchvision's (adjust_brightness, adjust_contrast, adjust_saturation, adjust_hue, rgb_to_grayscale,
solarize). The difference: crops stay in float32 from the resize to the end and are rounded once, where torchvision's
uint8 functions cut the fraction off after every operation; each operation is within one grey level of torchvision's.
Only single additions, products, minima and sums of whole numbers are used: the result for a crop is the same bits
whatever shares its batch and however many threads run.

Planes are float32 [C, n, h, w], 0-255, changed in place; factors are [n, 1, 1].
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from mst.views.parameters import ColourParameters

LUMINANCE = (0.2989, 0.587, 0.114)
"""torchvision's weights of red, green and blue."""
FLOAT32_WHOLE = 1 << 24
"""float32 holds every whole number up to this one."""


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
    # The sum of whole numbers does not depend on its order, as long as all of them are exact.
    exact = torch.float32 if grey[0].numel() * 255 < FLOAT32_WHOLE else torch.float64
    mean = grey.round_().sum((1, 2), keepdim=True, dtype=exact) / grey[0].numel()  # [n, 1, 1]
    offset = mean.float() * (1 - factor)  # [n, 1, 1]
    planes.mul_(factor).add_(offset).clamp_(0, 255)


def adjust_saturation(planes: Tensor, factor: Tensor) -> None:
    """Move away from (factor > 1) or towards the pixel's grey value."""
    offset = luminance(planes).mul_(1 - factor)  # [n, h, w]
    planes.mul_(factor).add_(offset).clamp_(0, 255)


def adjust_hue(planes: Tensor, factor: Tensor) -> None:
    """Turn the hue by a factor in turns, keeping each pixel's largest value and its range of values c.

    In HSV with the hue in sixths of a turn, a channel is its largest value for hues up to 1 away from the channel's own
    colour, falls by c on the way from 1 to 2, and stays there. c times that distance is the sum of the three channels
    - 2 * channel + max - 2 * min, and its sign is the sign of the difference of the other two channels: so the hue
    is shifted without a division, a comparison or a selection, all of which cost more than this arithmetic.
    """
    red, green, blue = planes  # [n, h, w]
    largest = torch.maximum(torch.maximum(red, green), blue)
    least = torch.minimum(torch.minimum(red, green), blue)
    chroma = largest - least
    distance = red + green
    distance.add_(blue).add_(largest).sub_(least, alpha=2)
    distance = torch.sub(distance, planes, alpha=2)  # [3, n, h, w] 0..3c
    side = torch.empty_like(planes)
    for i in range(3):
        torch.sub(planes[i - 2], planes[i - 1], out=side[i])
    torch.copysign(distance, side, out=distance)  # -3c..3c
    distance.add_(chroma * (factor * 6)).abs_()  # 0..6c; beyond 3c it comes back from the other side
    distance.sub_(chroma * 3).abs_().add_(largest.sub_(chroma, alpha=2))  # max + c - the distance within 0..3c
    torch.clamp(distance, least, chroma.add_(least), out=planes)


def turn_grey(planes: Tensor) -> None:
    """Replace the colours by their luminance."""
    planes.copy_(luminance(planes).expand_as(planes))


def solarize(planes: Tensor) -> None:
    """Invert the values from 128 on: x -> min(x, 255 - x)."""
    torch.minimum(planes, 255 - planes, out=planes)


def on_rows(planes: Tensor, rows: Sequence[int], operation: Callable[[Tensor], None]) -> None:
    """Apply an operation that works in place to the given ones of the n crops of [C, n, h, w]."""
    if len(rows) == planes.shape[1]:
        operation(planes)
    elif rows:
        numbers = torch.tensor(rows, device=planes.device)
        some = planes.index_select(1, numbers)
        operation(some)
        planes.index_copy_(1, numbers, some)


_ADJUST = (adjust_brightness, adjust_contrast, adjust_saturation, adjust_hue)  # as OPERATIONS


def jitter(planes: Tensor, parameters: ColourParameters) -> None:
    """Apply the jitter's operations to each crop in the crop's own order.

    Args:
        planes: float32 [C, n, h, w].
        parameters: of the n crops.
    """
    factors = torch.from_numpy(parameters.factors).float().to(planes.device)[..., None, None]  # [n, 4, 1, 1]
    for numbers in parameters.order.T.tolist():  # the n crops' first operations, then their second ones, ...
        for number in set(numbers) - {-1}:
            rows = [row for row, other in enumerate(numbers) if other == number]
            factor = factors[:, number] if len(rows) == len(numbers) else factors[rows, number]
            on_rows(planes, rows, partial(_ADJUST[number], factor=factor))
