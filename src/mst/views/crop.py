"""Cutting, resizing, mirroring and blurring crops: the geometric half of the augmentation."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mst.views.colour import beside
from mst.views.parameters import CropParameters, Floats

SMALLEST_SIGMA = 0.25
"""A blur below this moves no value of 0-255 by half a grey level, so it is left out."""


def resizable(image: Tensor, layout: torch.memory_format) -> Tensor:
    """Return an image [C, H, W] as [1, C, H, W] with the values of a pixel together, which the resize reads quickest.

    The resize writes crops in the layout that the strides speak of. That of the first dimension, of which there is one,
    moves nothing and decides: H * W * C is channels last, C is not.
    """
    pixels = image.permute(1, 2, 0).contiguous()  # [H, W, C]
    return pixels[None].permute(0, 3, 1, 2) if layout == torch.channels_last else pixels.permute(2, 0, 1)[None]


def cut(image: Tensor, parameters: CropParameters, crops: Tensor) -> None:
    """Cut boxes out of one image and resize them (bicubic, antialiased), mirrored where asked.

    Equal to torchvision's resized_crop, without its dispatch, which costs more than resizing a small box.

    Args:
        image: uint8 [1, C, H, W], see `resizable`.
        parameters: boxes and flips of the n crops.
        crops: where they go: uint8 [n, C, h, w] in the layout of `resizable`; larger than the boxes is fine.
    """
    size, p = crops.shape[-2:], parameters
    columns = (column.tolist() for column in (p.top, p.left, p.height, p.width, p.flip))
    for place, top, left, height, width, flip in zip(crops.unbind(), *columns, strict=True):
        box = image[:, :, top : top + height, left : left + width]  # [1, C, H', W']
        crop = resize(box, size)[0]  # [C, h, w]
        place.copy_(crop.flip(-1) if flip else crop)


def resize(box: Tensor, size: Sequence[int]) -> Tensor:
    """Return uint8 pixels [1, C, H, W] at another size, bicubic and antialiased.

    CUDA has no such kernel for uint8: there they are float32 in between, and within one grey level of a CPU's.
    """
    return in_floats(box, size) if box.is_cuda else F.interpolate(box, size, mode="bicubic", antialias=True)


def in_floats(box: Tensor, size: Sequence[int]) -> Tensor:
    """Do `resize` by way of float32; the result is whole numbers from 0 to 255, float32."""
    return F.interpolate(box.float(), size, mode="bicubic", antialias=True).round_().clamp_(0, 255)


def blur_weights(sigma: Floats, limit: int) -> Tensor:
    """Return the centre and right-hand weights of normalised Gaussian kernels, [n, R + 1].

    A kernel reaches three standard deviations, at least one pixel and less than `limit` (the crop's shorter side, which
    reflection at the border asks for). R is the largest reach among the n; taps beyond a kernel's own reach are 0.
    """
    reach = np.clip(np.round(3 * sigma), 1, limit - 1)  # [n]
    taps = np.arange(int(reach.max()) + 1)  # [R + 1]
    weights = np.exp(-0.5 * (taps / sigma[:, None]) ** 2) * (taps <= reach[:, None])  # [n, R + 1]
    total = 2 * weights.cumsum(1)[:, -1:] - 1  # one by one, as zeros behind must not change it; the centre is 1
    return torch.from_numpy((weights / total).astype(np.float32))


def blur(planes: Tensor, sigma: Floats) -> None:
    """Blur each crop in place with its own Gaussian, separably, the border reflected: torchvision's gaussian_blur.

    Args:
        planes: float32 [C, n, h, w].
        sigma: standard deviations in pixels, all positive, [n].
    """
    weights = blur_weights(sigma, min(planes.shape[-2:]))  # [n, R + 1]
    reach = weights.shape[1] - 1
    columns = beside(weights, planes).T[:, None, :, None, None]  # [R + 1, 1, n, 1, 1]
    for axis in (-1, -2):
        padding = (reach, reach, 0, 0) if axis == -1 else (0, 0, reach, reach)
        padded = F.pad(planes, padding, mode="reflect")
        length = planes.shape[axis]
        planes.mul_(columns[0])
        for tap in range(1, reach + 1):
            pair = padded.narrow(axis, reach - tap, length) + padded.narrow(axis, reach + tap, length)
            planes.add_(pair.mul_(columns[tap]))


def blur_one(planes: Tensor, sigma: float) -> None:
    """Do to one crop what `blur` does to many: with its own number of taps, and quicker where it fills a cache.

    The crop is padded once and weighed as one row of numbers: what is left or right of a pixel is one place away, what
    is above or below as many places as a padded row is long. What this mixes across the borders lies in the padding.

    Args:
        planes: float32 [C, h, w].
        sigma: standard deviation in pixels, positive.
    """
    C, h, w = planes.shape
    reach = min(max(round(3 * sigma), 1), min(h, w) - 1)
    weights = [math.exp(-0.5 * (tap / sigma) ** 2) for tap in range(1, reach + 1)]
    padded = F.pad(planes[None], (reach,) * 4, mode="reflect")
    length = w + 2 * reach
    blurred = _weigh(_weigh(padded.flatten(), weights, 1), weights, length)
    rows = blurred.as_strided((C, h, w), ((h + 2 * reach) * length, length, 1))
    torch.mul(rows, (1 + 2 * sum(weights)) ** -2, out=planes)


def _weigh(numbers: Tensor, weights: Sequence[float], step: int) -> Tensor:
    """Add to each number its neighbours `step`, 2 `step`, ... places away, times a weight, where it has all of them.

    Args:
        numbers: [N].
        weights: of the R neighbours on either side, the nearest first.
        step: how far apart neighbours are.

    Returns:
        [N - 2 * R * step].
    """
    reach = len(weights)
    shifted = numbers.as_strided((2 * reach + 1, len(numbers) - 2 * reach * step), (step, 1)).unbind()
    result = shifted[reach]
    for tap, weight in enumerate(weights, 1):
        result = torch.add(result, shifted[reach - tap], alpha=weight, out=None if tap == 1 else result)
        result.add_(shifted[reach + tap], alpha=weight)
    return result
