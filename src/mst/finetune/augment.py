"""What supervised training does to images: RandAugment, random erasing, mixup and CutMix, all from given draws.

Source: Cubuk et al. 2020 (RandAugment, timm's operations), Zhong et al. 2020 (random erasing, filled with noise),
Zhang et al. 2018 (mixup), Yun et al. 2019 (CutMix), in DeiT's combination (Touvron et al. 2021). timm's operations and
targets are used; differs from timm in where the random numbers come from: its classes draw from global generators.
Letters: B images, C channels, H W pixels, K classes.
"""

from __future__ import annotations

import math
import random
import re
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from PIL import Image
from timm.data.auto_augment import rand_augment_transform
from timm.data.mixup import mixup_target
from torch import Tensor

from mst.errors import UsageError

RGB = 3
TRANSLATE_SHARE = 0.45
AREA, ASPECT = (0.02, 1 / 3), 0.3
TRIES = 10
KNOWN_PART = re.compile(r"(m|n|p|mstd|mmax|inc)\d.*|t.+")
"""Parts of a description that timm heeds; without a digit it would ignore them."""
CUTMIX_SHARE = 0.5


class RandAugment:
    """timm's RandAugment of RGB images, repeatable."""

    def __init__(self, description: str, *, size: tuple[int, int], mean: tuple[float, ...]) -> None:
        """Prepare it.

        Args:
            description: as timm writes it, `rand-m9-mstd0.5-inc1`.
            size: (H, W) of the images; translations go up to 45 % of the shorter side.
            mean: fills what a shift leaves empty; in [0, 1].

        Raises:
            UsageError: timm does not understand the description.
        """
        values = {
            "translate_const": int(min(size) * TRANSLATE_SHARE),
            "img_mean": tuple(min(255, round(255 * value)) for value in mean),
            "interpolation": Image.Resampling.BICUBIC,
        }
        try:
            if not description.startswith("rand"):
                raise ValueError("it must begin with rand")
            ignored = [part for part in description.split("-")[1:] if not KNOWN_PART.fullmatch(part)]
            if ignored:
                raise ValueError(f"timm does not know {ignored[0]}")
            self._operation = rand_augment_transform(description, values)
            for operation in self._operation.ops:
                if operation.name.startswith("Posterize"):
                    operation.level_fn = partial(at_least_one_bit, operation.level_fn)
        except (AssertionError, ValueError, KeyError) as error:
            reason = str(error) or "timm does not know it"
            raise UsageError(f"--randaugment {description}: {reason}; use rand-m9-mstd0.5-inc1 or none") from error

    def __call__(self, image: Tensor, seed: int) -> Tensor:
        """Return a changed uint8 image [3, H, W]; the generators that timm uses are put back. One thread at a time."""
        before, numbers = random.getstate(), np.random.get_state()
        random.seed(seed)
        np.random.seed(seed % 2**32)
        try:
            changed = self._operation(Image.fromarray(image.permute(1, 2, 0).contiguous().numpy()))
        finally:
            random.setstate(before)
            np.random.set_state(numbers)
        return torch.from_numpy(np.array(changed)).permute(2, 0, 1).contiguous()


def at_least_one_bit(
    bits: Callable[[float, Mapping[str, Any]], tuple[int]], magnitude: float, values: Mapping[str, Any]
) -> tuple[int]:
    """Return timm's number of bits to keep; it gives 0 at the largest magnitude, which Pillow from 12 on refuses."""
    return (max(bits(magnitude, values)[0], 1),)


def erased(images: Tensor, probability: float, draw: np.random.Generator) -> Tensor:
    """Replace a rectangle of some images by normal noise, in place.

    The noise comes from torch's global generator of the images' device.

    Args:
        images: normalised, float32 [B, C, H, W].
        probability: of each image.
        draw: of the choice and the rectangles: 2 to 33 % of the area, sides in a ratio of 0.3 to 1/0.3.
    """
    height, width = images.shape[-2:]
    limit = math.log(ASPECT)
    for image in images:
        if draw.random() >= probability:
            continue
        for _ in range(TRIES):
            area, aspect = draw.uniform(*AREA) * height * width, math.exp(draw.uniform(limit, -limit))
            h, w = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if 0 < h < height and 0 < w < width:
                top, left = draw.integers(height - h + 1), draw.integers(width - w + 1)
                image[:, top : top + h, left : left + w].normal_()
                break
    return images


def mixed(
    images: Tensor,
    labels: Tensor,
    classes: int,
    *,
    mixup: float,
    cutmix: float,
    smoothing: float,
    draw: np.random.Generator,
) -> tuple[Tensor, Tensor]:
    """Return images mixed with those in reverse order, and their targets.

    Args:
        images: [B, C, H, W].
        labels: int64 [B], on the images' device.
        classes: K.
        mixup: alpha of mixup; 0 = none.
        cutmix: alpha of CutMix; 0 = none. With both, one of them is taken, with equal chances.
        smoothing: label smoothing.
        draw: of the choice, the share and the rectangle; one for the whole batch.

    Returns:
        Images [B, C, H, W] and targets [B, K], whose rows sum to one.
    """
    share = 1.0
    if cutmix > 0 and (mixup == 0 or draw.random() < CUTMIX_SHARE):
        top, bottom, left, right = cutmix_box((images.shape[-2], images.shape[-1]), draw.beta(cutmix, cutmix), draw)
        images = images.clone()
        images[..., top:bottom, left:right] = images.flip(0)[..., top:bottom, left:right]
        share = 1 - (bottom - top) * (right - left) / (images.shape[-2] * images.shape[-1])
    elif mixup > 0:
        share = float(draw.beta(mixup, mixup))
        images = images * share + images.flip(0) * (1 - share)
    targets: Tensor = mixup_target(labels, classes, share, smoothing)  # type: ignore[no-untyped-call]
    return images, targets


def cutmix_box(size: tuple[int, int], share: float, draw: np.random.Generator) -> tuple[int, int, int, int]:
    """Return top, bottom, left and right of a box of 1 - `share` of the area around any point, cut at the border."""
    scale = math.sqrt(1 - share)
    ends: list[int] = []
    for side in size:
        length, centre = int(side * scale), int(draw.integers(side))
        ends += [max(centre - length // 2, 0), min(centre + (length + 1) // 2, side)]
    return ends[0], ends[1], ends[2], ends[3]
