"""How a labelled image becomes a frozen backbone's input, and how many labels a protocol may use.

Source: DINO (Caron et al. 2021), section 4.1: short side 256, centre 224, bicubic. Differs: the size and the ratio
256/224 follow the backbone's training size, and an image that already has that size is used whole.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as V

from mst.errors import UsageError
from mst.runtime.seeding import generator

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class ImageTransform:
    """Resize so that the image covers `size * resize_ratio`, cut the centre, scale to [0, 1], normalise.

    Attributes:
        size: (H, W) of the result; normally the size the backbone was trained at.
        mean: per-channel mean in [0, 1].
        std: per-channel standard deviation in [0, 1].
        resize_ratio: 256/224 as in DINO; 1.0 keeps as much of the image as the aspect ratio allows.
        whole_if_exact: an image that already is `size` is taken as it is: neither enlarged nor cut. False treats it
            like every other image (32 px CIFAR images would be enlarged to 37 px and cut back to 32).
    """

    size: tuple[int, int]
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    resize_ratio: float = 256 / 224
    whole_if_exact: bool = True

    def __call__(self, image: Tensor) -> Tensor:
        """Return float32 [C, h, w] for a uint8 image [C, H, W].

        Raises:
            UsageError: the image has another number of channels than `mean`.
        """
        return self.normalise(self.crop(image))

    def crop(self, image: Tensor) -> Tensor:
        """Return the resized centre, uint8 [C, h, w]."""
        if self.whole_if_exact and tuple(image.shape[-2:]) == self.size:
            return image
        height, width = cover_size((image.shape[-2], image.shape[-1]), self.size, self.resize_ratio)
        resized: Tensor = V.resize(image, [height, width], InterpolationMode.BICUBIC, antialias=True)
        top, left = round((height - self.size[0]) / 2), round((width - self.size[1]) / 2)
        return resized[:, top : top + self.size[0], left : left + self.size[1]]

    def normalise(self, image: Tensor) -> Tensor:
        """Return float32 [..., C, h, w], (image / 255 - mean) / std."""
        if image.shape[-3] != len(self.mean):
            raise UsageError(f"images have {image.shape[-3]} channels, the backbone was trained with {len(self.mean)}")
        mean = torch.tensor(self.mean)[:, None, None]
        std = torch.tensor(self.std)[:, None, None]
        return (image.float() / 255 - mean) / std


def resized(image: Tensor, size: tuple[int, int]) -> Tensor:
    """Return a uint8 image [C, H, W] at another size (h, w), aspect ratio not kept; bicubic with antialiasing."""
    if tuple(image.shape[-2:]) == size:
        return image
    out: Tensor = V.resize(image, list(size), InterpolationMode.BICUBIC, antialias=True)
    return out


def squash(image: Tensor, transform: ImageTransform) -> Tensor:
    """Return a uint8 image [C, H, W] resized to the transform's size, aspect ratio not kept, and normalised."""
    return transform.normalise(resized(image, transform.size))


def fitting_size(size: Sequence[int], patch_size: int) -> tuple[int, int]:
    """Return an image's (H, W), each side to the nearest multiple of the patch, at least one patch."""
    height, width = (max(patch_size, round(side / patch_size) * patch_size) for side in size)
    return height, width


def cover_size(image: tuple[int, int], size: tuple[int, int], ratio: float) -> tuple[int, int]:
    """Return (H, W), the shape of `image` scaled so that it just covers `size * ratio`."""
    target = [max(round(side * ratio), side) for side in size]
    scale = max(target[0] / image[0], target[1] / image[1])
    return max(int(image[0] * scale + 1e-6), target[0]), max(int(image[1] * scale + 1e-6), target[1])


def random_resized_crop(
    image: Tensor, size: tuple[int, int], draw: torch.Generator, *, least_area: float = 0.08
) -> Tensor:
    """Return a random crop of a uint8 image [C, H, W], resized to `size` and flipped half of the time.

    Share of the area uniform in `least_area`-1, aspect ratio log-uniform in 3/4-4/3 times that of `size`, as in
    supervised ImageNet training; ten draws, then the centre.
    """
    height, width = image.shape[-2:]
    uniform = torch.rand(10, 4, generator=draw).tolist()
    flip = torch.rand((), generator=draw).item() < 0.5
    top, left, h, w = 0, 0, height, width
    for area_draw, ratio_draw, y_draw, x_draw in uniform:
        area = height * width * (least_area + (1 - least_area) * area_draw)
        ratio = size[1] / size[0] * (4 / 3) ** (2 * ratio_draw - 1)
        h, w = round(math.sqrt(area / ratio)), round(math.sqrt(area * ratio))
        if 0 < h <= height and 0 < w <= width:
            top, left = int(y_draw * (height - h + 1)), int(x_draw * (width - w + 1))
            break
    else:
        h = w = min(height, width)
        top, left = (height - h) // 2, (width - w) // 2
    crop = image[:, top : top + h, left : left + w]
    resized: Tensor = V.resize(crop, list(size), InterpolationMode.BILINEAR, antialias=True)  # as DINO's eval_linear.py
    return resized.flip(-1) if flip else resized


@dataclass(frozen=True)
class LowShot:
    """How many training labels a protocol sees; both unset means all of them.

    Attributes:
        train_share: share of each class's training images, 0.01 for "1 %"; at least one image per class stays.
        train_per_class: at most this many training images per class.
    """

    train_share: float = 1.0
    train_per_class: int | None = None

    def __post_init__(self) -> None:
        if not 0.0 < self.train_share <= 1.0:
            raise UsageError(f"--train-share {self.train_share}: must be above 0 and at most 1")
        if self.train_per_class is not None and self.train_per_class < 1:
            raise UsageError(f"--train-per-class {self.train_per_class}: must be at least 1")

    def select(self, labels: Tensor, *, seed: int) -> list[int]:
        """Return the chosen training indices in ascending order, drawn class by class from `seed`."""
        if self.train_share == 1.0 and self.train_per_class is None:
            return list(range(len(labels)))
        chosen: list[int] = []
        for label in torch.unique(labels).tolist():
            members = (labels == label).nonzero().flatten()
            count = max(1, round(self.train_share * len(members)))
            if self.train_per_class is not None:
                count = min(count, self.train_per_class)
            order = torch.randperm(len(members), generator=generator(seed, "low-shot", label))
            chosen += members[order[:count]].tolist()
        return sorted(chosen)
