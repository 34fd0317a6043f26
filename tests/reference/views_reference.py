"""Multi-crop, one crop at a time, one torchvision function after the other: what `mst.views` is compared with."""

from __future__ import annotations

import torch
import torchvision.transforms.v2.functional as TF
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode

from mst.views.parameters import OPERATIONS, CropParameters


def reference_crop(image: Tensor, parameters: CropParameters, size: tuple[int, int], *, rounded: bool) -> Tensor:
    """Apply the parameters of one crop (arrays of length 1) to a uint8 image [C, H, W] -> uint8 [C, h, w].

    `rounded` False keeps floats from the resize to the end; True is torchvision on uint8, which cuts off the fraction
    after every operation.
    """
    box = [int(getattr(parameters, name)[0]) for name in ("top", "left", "height", "width")]
    crop = TF.resized_crop(image, *box, list(size), interpolation=InterpolationMode.BICUBIC, antialias=True)
    if parameters.flip[0]:
        crop = TF.horizontal_flip(crop)
    if not rounded:
        crop = crop.double() / 255
    for number in parameters.order[0]:
        if number >= 0:
            crop = reference_jitter(crop, OPERATIONS[number], float(parameters.factors[0, number]))
    if parameters.grey[0]:
        crop = TF.rgb_to_grayscale(crop, num_output_channels=3)
    if parameters.sigma[0] > 0:
        crop = reference_blur(crop, float(parameters.sigma[0]))
    if parameters.solarize[0]:
        crop = TF.solarize(crop, 128 if rounded else 127.5 / 255)
    return crop if rounded else (crop * 255).round().to(torch.uint8)


def reference_jitter(crop: Tensor, name: str, factor: float) -> Tensor:
    """One of the four jitter operations, with torchvision's function where it takes the number of channels."""
    if len(crop) in (1, 3):
        return getattr(TF, f"adjust_{name}")(crop, factor)
    limit = 1.0 if crop.is_floating_point() else 255
    mean = crop.double().mean() if name == "contrast" else 0.0
    value = crop.double() * factor + (1 - factor) * mean
    return value.clamp(0, limit).to(crop.dtype) if name in ("brightness", "contrast") else crop


def reference_blur(crop: Tensor, sigma: float) -> Tensor:
    """torchvision's blur with a kernel of three standard deviations, at least three taps, shorter than the crop."""
    reach = min(max(1, round(3 * sigma)), min(crop.shape[-2:]) - 1)
    return TF.gaussian_blur(crop, [2 * reach + 1] * 2, [sigma, sigma])
