"""Random scale, crop, flip and colour of an image and its mask, all drawn from one generator.

Source: mmsegmentation's training pipeline for Cityscapes at 768 x 768 (ratio 0.5 to 2, crops where one class covers
at most 75 %, flip, photometric distortion, padding with the mean colour and void). Differs: brightness, contrast,
saturation and hue have the ranges of torchvision's `RandomPhotometricDistort` (Liu et al. 2016, SSD), which multiplies
the brightness, and channels are not swapped.
Letters: C channels, H W pixels of the image, h w of the crop.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms.v2 import functional as V

from mst.errors import UsageError
from mst.evaluate.common.protocol import resized
from mst.evaluate.segmentation.data import NO_CLASS
from mst.evaluate.segmentation.inference import View

TRIES = 10
"""Crops that are drawn, at most, to find one that is not almost of a single class."""
BRIGHTNESS, CONTRAST, SATURATION, HUE = (0.875, 1.125), (0.5, 1.5), (0.5, 1.5), (-0.05, 0.05)
"""torchvision's defaults; the hue in turns of the colour circle."""


@dataclass(frozen=True)
class Augmentation:
    """How training images vary.

    Attributes:
        scales: the image is enlarged by a factor drawn between these two.
        max_class_share: crops in which one class covers more than this are drawn again, at most nine times; 1 = never.
        flip: mirror half of the images.
        distort: vary brightness, contrast, saturation and hue (grey and RGB images).
    """

    scales: tuple[float, float] = (0.5, 2.0)
    max_class_share: float = 0.75
    flip: bool = True
    distort: bool = True

    def __post_init__(self) -> None:
        if not 0.0 < self.scales[0] <= self.scales[1]:
            raise UsageError(f"--scales {self.scales[0]} {self.scales[1]}: needed are two rising numbers above 0")
        if not 0.0 < self.max_class_share <= 1.0:
            raise UsageError(f"--max-class-share {self.max_class_share}: must be above 0 and at most 1")


def augmented(
    image: Tensor, mask: Tensor, view: View, settings: Augmentation, draw: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Return a normalised crop float32 [C, h, w] of the view's size and its classes [h, w], NO_CLASS where padded.

    Args:
        image: uint8 [C, H, W].
        mask: int64 [H, W], NO_CLASS where there is none.
        view: the size that images are resized to before scaling, the size of the crop, the normalisation.
        settings: ranges.
        draw: of all choices; every call draws the same number of values.
    """
    choice = torch.rand(7, generator=draw).tolist()
    corners = torch.rand(TRIES, 2, generator=draw).tolist()
    strengths = torch.rand(4, generator=draw).tolist()
    low, high = settings.scales
    scale = low + (high - low) * choice[0]
    height, width = (max(1, round(scale * side)) for side in view.base_size(image))
    mask = F.interpolate(mask[None, None].float(), (height, width), mode="nearest-exact")[0, 0].long()
    top, left = _corner(mask, view.size, corners, settings.max_class_share)
    rows, columns = slice(top, top + view.size[0]), slice(left, left + view.size[1])
    crop, classes = resized(image, (height, width))[:, rows, columns], mask[rows, columns]  # at most [C,h,w], [h,w]
    if settings.flip and choice[1] < 0.5:
        crop, classes = crop.flip(-1), classes.flip(-1)
    if settings.distort and len(crop) in (1, 3):
        crop = distorted(crop, choice[2:], strengths)
    missing = (0, view.size[1] - crop.shape[-1], 0, view.size[0] - crop.shape[-2])
    return F.pad(view.normalise(crop), missing), F.pad(classes, missing, value=NO_CLASS)


def _corner(mask: Tensor, size: tuple[int, int], corners: list[list[float]], max_share: float) -> tuple[int, int]:
    """Return the first corner whose crop is not full of one class, or the last one tried."""
    room = [max(0, side - window) + 1 for side, window in zip(mask.shape, size, strict=True)]
    top = left = 0
    for y, x in corners:
        top, left = int(y * room[0]), int(x * room[1])
        inside = mask[top : top + size[0], left : left + size[1]]
        known = inside[inside != NO_CLASS]
        if max_share == 1.0 or (len(known) and int(torch.bincount(known).max()) <= max_share * len(known)):
            break
    return top, left


def distorted(image: Tensor, choice: list[float], strengths: list[float]) -> Tensor:
    """Return a uint8 image [C, h, w] with other colours; each change happens half of the time.

    Args:
        image: grey or RGB.
        choice: five numbers in [0, 1): whether to change brightness, contrast, saturation and hue, and whether
            contrast comes before or after saturation and hue.
        strengths: four numbers in [0, 1): the place of each change in its range.
    """
    amounts = [
        low + (high - low) * share
        for (low, high), share in zip((BRIGHTNESS, CONTRAST, SATURATION, HUE), strengths, strict=True)
    ]
    brightness, contrast, saturation, hue = (chosen < 0.5 for chosen in choice[:4])
    contrast_first = choice[4] < 0.5
    if brightness:
        image = V.adjust_brightness(image, amounts[0])
    if contrast and contrast_first:
        image = V.adjust_contrast(image, amounts[1])
    if saturation:
        image = V.adjust_saturation(image, amounts[2])
    if hue:
        image = V.adjust_hue(image, amounts[3])
    if contrast and not contrast_first:
        image = V.adjust_contrast(image, amounts[1])
    return image
