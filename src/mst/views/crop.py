"""Cutting, resizing, mirroring and blurring crops: the geometric half of the augmentation."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2.functional import resized_crop

from mst.views.parameters import CropParameters, Floats

SMALLEST_SIGMA = 0.25
"""A blur below this moves no value of 0-255 by half a grey level, so it is left out."""


def cut(images: list[Tensor], parameters: CropParameters, size: tuple[int, int]) -> Tensor:
    """Cut one box out of each image and resize it (bicubic, antialiased), mirrored where asked.

    Args:
        images: n uint8 tensors [C, H, W]; sizes may differ.
        parameters: n boxes and flips.
        size: (h, w) of the crops; larger than the box is fine.

    Returns:
        float32 planes [C, n, h, w] holding whole numbers 0-255.
    """
    planes = torch.empty(images[0].shape[0], len(images), *size)  # [C, n, h, w]
    boxes = zip(
        *(getattr(parameters, name).tolist() for name in ("top", "left", "height", "width", "flip")), strict=True
    )
    for i, (image, (top, left, height, width, flip)) in enumerate(zip(images, boxes, strict=True)):
        crop = resized_crop(
            image, top, left, height, width, list(size), interpolation=InterpolationMode.BICUBIC, antialias=True
        )
        planes[:, i] = crop.flip(-1) if flip else crop  # [C, h, w]
    return planes


def blur_weights(sigma: Floats, limit: int) -> Tensor:
    """Return the centre and right-hand weights of normalised Gaussian kernels, [n, R + 1].

    A kernel reaches three standard deviations, at least one pixel and less than `limit` (the crop's shorter side, which
    reflection at the border asks for). R is the largest reach among the n; taps beyond a kernel's own reach are 0.
    """
    reach = torch.from_numpy(sigma).mul(3).ceil().clamp(min=1, max=limit - 1)  # [n]
    taps = torch.arange(int(reach.max()) + 1, dtype=torch.float64)  # [R + 1]
    weights = torch.exp(-0.5 * (taps / torch.from_numpy(sigma)[:, None]) ** 2)  # [n, R + 1]
    weights *= taps <= reach[:, None]
    return (weights / (weights[:, :1] + 2 * weights[:, 1:].sum(1, keepdim=True))).float()


def blur(planes: Tensor, sigma: Floats) -> None:
    """Blur each crop in place with its own Gaussian, separably, the border reflected: torchvision's gaussian_blur.

    Args:
        planes: float32 [C, n, h, w].
        sigma: standard deviations in pixels, all positive, [n].
    """
    weights = blur_weights(sigma, min(planes.shape[-2:]))  # [n, R + 1]
    reach = weights.shape[1] - 1
    columns = weights.T[:, None, :, None, None]  # [R + 1, 1, n, 1, 1]
    for axis in (-1, -2):
        padding = (reach, reach, 0, 0) if axis == -1 else (0, 0, reach, reach)
        padded = F.pad(planes, padding, mode="reflect")
        length = planes.shape[axis]
        planes.mul_(columns[0])
        for tap in range(1, reach + 1):
            pair = padded.narrow(axis, reach - tap, length) + padded.narrow(axis, reach + tap, length)
            planes.add_(pair.mul_(columns[tap]))
