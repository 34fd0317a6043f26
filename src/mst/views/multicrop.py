"""Multi-crop augmentation: G large and L small random crops of an image, each with its own colour changes.

Source: DINO (Caron et al. 2021, after SwAV's multi-crop). Differs in computing on tensors, many crops at once; the
crops of a sample depend on its image and its generator only, never on the batch around it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from mst.config.schema import ViewsConfig
from mst.errors import DataError
from mst.views import colour, crop
from mst.views.parameters import CropParameters, draw_parameters, draw_uniforms, height_width

LARGE_CROP = 1 << 14
"""Values from which a crop is worked on alone, so that its planes stay in the processor's cache."""
CHUNK_VALUES = 1 << 18
"""Values of smaller crops worked on together, so that they share the cost of a call."""


class ImageCrops(NamedTuple):
    """The crops of one image, or of B images.

    Attributes:
        global_crops: uint8 [G, C, H, W], or [G, B, C, H, W].
        local_crops: uint8 [L, C, h, w], or [L, B, C, h, w].
    """

    global_crops: Tensor
    local_crops: Tensor


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
        """Return the crops of one uint8 image [C, H, W]; see `batch`, which is several times faster per image."""
        global_crops, local_crops = self.batch([image], [generator])
        return ImageCrops(global_crops[:, 0], local_crops[:, 0])

    def batch(self, images: Sequence[Tensor], generators: Sequence[torch.Generator]) -> ImageCrops:
        """Return the crops of B images, stacked by view; bit for bit those of one call per image.

        Args:
            images: B uint8 tensors [C, H, W]; sizes may differ.
            generators: one per image; each is advanced by the same number of draws.

        Raises:
            DataError: an image is not uint8 or has another number of channels.
        """
        for image in images:
            if image.dtype != torch.uint8 or image.ndim != 3 or image.shape[0] != self.channels:
                raise DataError(
                    f"image is {image.dtype} {tuple(image.shape)}, must be uint8 [{self.channels}, H, W]: "
                    "decode it with data.channels"
                )
        config = self.config
        B, views = len(images), config.global_crops + config.local_crops
        sizes = np.array([image.shape[1:] for image in images])  # [B, 2]
        uniforms = draw_uniforms(views, generators)  # [DRAWS, V, B]
        parameters = draw_parameters(config, uniforms, sizes, channels=self.channels)
        # The resize reads the three values of a pixel together.
        images = [image[None].contiguous(memory_format=torch.channels_last)[0] for image in images]
        cut = B * config.global_crops
        return ImageCrops(
            self._crops(images, parameters[:cut], height_width(config.global_size)),
            self._crops(images, parameters[cut:], height_width(config.local_size)),
        )

    def _crops(self, images: list[Tensor], parameters: CropParameters, size: tuple[int, int]) -> Tensor:
        """Return V crops of one size of each image [V, B, C, h, w]."""
        n, B = len(parameters), len(images)
        crops = torch.empty(n, self.channels, *size, dtype=torch.uint8)
        values = self.channels * size[0] * size[1]
        step = 1 if values >= LARGE_CROP else CHUNK_VALUES // values
        for start in range(0, n, step):
            stop = min(start + step, n)
            planes = render([images[i % B] for i in range(start, stop)], parameters[start:stop], size)
            crops[start:stop].transpose(0, 1).copy_(planes.round_())  # [C, n, h, w] float32 -> uint8
        return crops.view(n // B, B, *crops.shape[1:])


def render(images: Sequence[Tensor], parameters: CropParameters, size: tuple[int, int]) -> Tensor:
    """Make n crops: cut and resize, flip, jitter, grey, blur, solarize.

    Args:
        images: n uint8 tensors [C, H, W], the source of each crop.
        parameters: of the n crops.
        size: (h, w) of the crops.

    Returns:
        float32 planes [C, n, h, w], 0-255.
    """
    planes = crop.cut(images, parameters, size)
    colour.jitter(planes, parameters)
    colour.on_rows(planes, parameters.grey.nonzero()[0].tolist(), colour.turn_grey)
    blurred = (parameters.sigma >= crop.SMALLEST_SIGMA).nonzero()[0].tolist()
    colour.on_rows(planes, blurred, lambda some: crop.blur(some, parameters.sigma[blurred]))
    colour.on_rows(planes, parameters.solarize.nonzero()[0].tolist(), colour.solarize)
    return planes
