"""Colour operations on float planes, one factor per crop: the photometric half of the augmentation.

The formulas are torchvision's (adjust_brightness, adjust_contrast, adjust_saturation, adjust_hue, rgb_to_grayscale,
solarize). The difference: crops stay in float32 from the resize to the end and are rounded once, where torchvision's
uint8 functions cut the fraction off after every operation; each operation is within one grey level of torchvision's.
Each number of a result comes from the same few operations on its own pixel, and sums are of whole numbers: the result
for a crop is the same bits whatever shares its batch and however many threads run.

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
NO_CHROMA = 1e-30
"""Divides zero to zero, and is lost in any other range of values."""


def luminance(planes: Tensor) -> Tensor:
    """Return the grey value of three colour planes [3, n, h, w] -> [n, h, w]."""
    red, green, blue = planes.unbind()
    return (red * LUMINANCE[0]).add_(green, alpha=LUMINANCE[1]).add_(blue, alpha=LUMINANCE[2])


def adjust_brightness(planes: Tensor, factor: Tensor) -> None:
    """Multiply by the factor."""
    planes.mul_(factor).clamp_(0, 255)


def adjust_contrast(planes: Tensor, factor: Tensor) -> None:
    """Move away from (factor > 1) or towards the crop's mean grey value."""
    grey = luminance(planes) if len(planes) == 3 else planes.mean(0)  # [n, h, w]
    # The sum of whole numbers does not depend on its order, as long as all of them are exact.
    exact = torch.float32 if grey[0].numel() * 255 < FLOAT32_WHOLE else torch.float64
    total = grey.round_().sum((1, 2), keepdim=True, dtype=exact)  # [n, 1, 1]
    offset = total * ((1 - factor) / grey[0].numel())
    planes.mul_(factor).add_(offset.float()).clamp_(0, 255)


def adjust_saturation(planes: Tensor, factor: Tensor) -> None:
    """Move away from (factor > 1) or towards the pixel's grey value."""
    torch.lerp(luminance(planes), planes, factor, out=planes).clamp_(0, 255)


def adjust_hue(planes: Tensor, factor: Tensor) -> None:
    """Turn the hue by a factor in turns, keeping each pixel's largest value and its range of values c.

    With the hue in turns from red, -1/2 to 1/2, red is its largest value up to 1/6, falls by c on the way from 1/6 to
    1/3 (on either side) and stays there; green rises likewise between 1/6 and 1/3 of distance from -1/6, blue from 1/6.
    6 c times a pixel's distance from red is green + blue - red + largest - 2 * least, and its sign is that of
    green - blue: so the hue is shifted without a comparison or a selection, which cost more than this arithmetic.
    """
    red, green, blue = planes.unbind()  # [n, h, w]
    largest, least, hue = torch.maximum(green, blue), torch.minimum(green, blue), green + blue
    torch.sub(green, blue, out=green)
    torch.maximum(largest, red, out=largest)
    torch.minimum(least, red, out=least)
    chroma = (largest - least).add_(NO_CHROMA)
    hue.sub_(red).add_(chroma).sub_(least).copysign_(green)
    torch.addcdiv(factor, hue, chroma, value=1 / 6, out=hue)  # the hue of a grey pixel does not matter
    torch.sub(hue, torch.round(hue, out=red), out=red)
    torch.add(red, 1 / 6, out=green)
    torch.sub(red, 1 / 6, out=blue)
    planes.abs_().clamp_(1 / 6, 1 / 3)
    torch.addcmul(largest.add_(chroma), red, chroma, value=-6, out=red)
    torch.addcmul(least.sub_(chroma), planes[1:], chroma, value=6, out=planes[1:])


def turn_grey(planes: Tensor) -> None:
    """Replace the colours by their luminance."""
    planes.copy_(luminance(planes).expand_as(planes))


def solarize(planes: Tensor) -> None:
    """Invert the values from 128 on: x -> min(x, 255 - x)."""
    torch.minimum(planes, 255 - planes, out=planes)


def beside(numbers: Tensor, planes: Tensor) -> Tensor:
    """Return numbers on the device of the planes; a CPU's, already there, cost nothing."""
    return numbers.to(planes.device, non_blocking=True) if planes.is_cuda else numbers


def on_rows(planes: Tensor, rows: Sequence[int], operation: Callable[[Tensor], None]) -> None:
    """Apply an operation that works in place to the given ones of the n crops of [C, n, h, w]."""
    if len(rows) == planes.shape[1]:
        operation(planes)
    elif rows:
        numbers = beside(torch.tensor(rows), planes)
        some = planes.index_select(1, numbers)
        operation(some)
        planes.index_copy_(1, numbers, some)


_ADJUST = (adjust_brightness, adjust_contrast, adjust_saturation, adjust_hue)  # as OPERATIONS


def adjust(planes: Tensor, order: Sequence[int], factors: Tensor) -> None:
    """Apply the jitter's operations to crops that all take them in one order.

    Args:
        planes: float32 [C, n, h, w].
        order: indices into `OPERATIONS`; -1 = nothing.
        factors: of each of `OPERATIONS`, [n, 4, 1, 1].
    """
    for number in order:
        if number >= 0:
            _ADJUST[number](planes, factors[:, number])


def jitter(planes: Tensor, parameters: ColourParameters) -> None:
    """Apply the jitter's operations to each crop in the crop's own order.

    Args:
        planes: float32 [C, n, h, w].
        parameters: of the n crops.
    """
    factors = torch.from_numpy(parameters.factors).float()[..., None, None]  # [n, 4, 1, 1]
    for numbers in parameters.order.T.tolist():  # the n crops' first operations, then their second ones, ...
        for number in set(numbers) - {-1}:
            rows = [row for row, other in enumerate(numbers) if other == number]
            factor = factors[:, number] if len(rows) == len(numbers) else factors[rows, number]
            on_rows(planes, rows, partial(_ADJUST[number], factor=beside(factor, planes)))
