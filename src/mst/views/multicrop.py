"""Multi-crop augmentation: G large and L small random crops of an image, each with its own colour changes.

Source: DINO (Caron et al. 2021, after SwAV's multi-crop). Differs: it works on tensors, many crops at once. The crops
of an image depend on that image and its generator only, not on the other images of the batch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from mst.config.schema import ViewsConfig
from mst.errors import DataError
from mst.views.crop import cut, resizable
from mst.views.finish import finish
from mst.views.parameters import CropParameters, draw_parameters, draw_uniforms, height_width

CUT_VALUES = 1 << 22
"""Values of crops that are cut before their colours change: they still lie in the last cache then, and the next ones
reuse their memory."""


class ImageCrops(NamedTuple):
    """The crops of one image, or of B images.

    Attributes:
        global_crops: uint8 [G, C, H, W], or [G, B, C, H, W].
        local_crops: uint8 [L, C, h, w], or [L, B, C, h, w].
    """

    global_crops: Tensor
    local_crops: Tensor


class CutCrops(NamedTuple):
    """Crops of B images before their colours are changed.

    Attributes:
        global_crops: uint8 [G, B, C, H, W].
        local_crops: uint8 [L, B, C, h, w].
        parameters: a row a crop, the G * B global ones first, then the L * B local ones; row `v * B + b` is view v of
            image b.
    """

    global_crops: Tensor
    local_crops: Tensor
    parameters: CropParameters


class MultiCrop:
    """The augmentation as a function of an image and a random generator.

    Args:
        config: the augmentation's settings.
        channels: channels of the images; hue, saturation and grey apply to 3 only.
    """

    def __init__(self, config: ViewsConfig, *, channels: int) -> None:
        self.config = config
        self.channels = channels

    def __call__(self, image: Tensor, generator: torch.Generator) -> ImageCrops:
        """Return the crops of one uint8 image [C, H, W]; `batch` takes less time for each of many images."""
        global_crops, local_crops = self.batch([image], [generator])
        return ImageCrops(global_crops[:, 0], local_crops[:, 0])

    def batch(self, images: Sequence[Tensor], generators: Sequence[torch.Generator]) -> ImageCrops:
        """Return the crops of B images, stacked by view: bit for bit those that a call for each image gives.

        Args:
            images: B uint8 tensors [C, H, W]; their sizes may differ.
            generators: one for each image; the same number of values is drawn from each.

        Raises:
            DataError: an image is not uint8 or has another number of channels.
        """
        B, shapes = len(images), self._shapes()
        together = max(1, CUT_VALUES // sum(math.prod(shape) for shape in shapes))
        if together >= B:
            return self._batch(images, generators)
        crops = ImageCrops(*(torch.empty(V, B, *shape, dtype=torch.uint8) for V, *shape in shapes))
        for start in range(0, B, together):
            some = slice(start, start + together)
            for whole, part in zip(crops, self._batch(images[some], generators[some]), strict=True):
                whole[:, some] = part
        return crops

    def _batch(self, images: Sequence[Tensor], generators: Sequence[torch.Generator]) -> ImageCrops:
        cut_global, cut_local, parameters = self._cut(images, generators, torch.channels_last)
        large = self.config.global_crops * len(images)
        global_crops, local_crops = (torch.empty(crops.shape, dtype=torch.uint8) for crops in (cut_global, cut_local))
        finish(cut_global.flatten(0, 1), parameters[:large], global_crops.flatten(0, 1))
        finish(cut_local.flatten(0, 1), parameters[large:], local_crops.flatten(0, 1))
        return ImageCrops(global_crops, local_crops)

    def _shapes(self) -> tuple[tuple[int, int, int, int], tuple[int, int, int, int]]:
        """Return (G, C, H, W) and (L, C, h, w)."""
        config, C = self.config, self.channels
        large, small = height_width(config.global_size), height_width(config.local_size)
        return (config.global_crops, C, *large), (config.local_crops, C, *small)

    def cut(self, images: Sequence[Tensor], generators: Sequence[torch.Generator]) -> CutCrops:
        """Cut, resize and flip, which is the first half of `batch`. `mst.views.finish` does the second half, colours.

        It may do that on another device.

        Raises:
            DataError: as `batch`.
        """
        return self._cut(images, generators, torch.contiguous_format)

    def _cut(
        self, images: Sequence[Tensor], generators: Sequence[torch.Generator], layout: torch.memory_format
    ) -> CutCrops:
        """Do what `cut` says, with the crops in the given memory layout.

        The resize writes channels last, and `finish` may read them so; another layout costs a copy.
        """
        for image in images:
            if image.dtype != torch.uint8 or image.ndim != 3 or image.shape[0] != self.channels:
                raise DataError(
                    f"image is {image.dtype} {tuple(image.shape)}, must be uint8 [{self.channels}, H, W]: "
                    "decode it with data.channels"
                )
        config, B = self.config, len(images)
        G, L = config.global_crops, config.local_crops
        uniforms = draw_uniforms(G + L, generators)  # [DRAWS, V, B]
        sizes = np.array([image.shape[1:] for image in images])  # [B, 2]
        parameters = draw_parameters(config, uniforms, sizes, channels=self.channels)
        global_crops, local_crops = (
            torch.empty(V * B, *shape, dtype=torch.uint8, memory_format=layout, device=images[0].device).view(
                V, B, *shape
            )
            for V, *shape in self._shapes()
        )
        for b, image in enumerate(images):
            source = resizable(image, layout)
            cut(source, parameters[b : G * B : B], global_crops[:, b])
            cut(source, parameters[G * B + b :: B], local_crops[:, b])
        return CutCrops(global_crops, local_crops, parameters)
