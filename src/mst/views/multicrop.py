"""Multi-crop augmentation: G large and L small random crops of an image, each with its own colour changes.

Source: DINO (Caron et al. 2021, after SwAV's multi-crop). Differs in computing on tensors, many crops at once: the crops
of a sample depend on its image and its generator only, never on the batch around it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from mst.config.schema import ViewsConfig
from mst.errors import DataError
from mst.views import colour, crop
from mst.views.parameters import CropParameters, draw_parameters, draw_uniforms, height_width

CHUNK_VALUES = 1 << 16
"""Values that are worked on at once: enough to hide the cost of a call, few enough for the processor's cache."""


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
        uniforms = draw_uniforms(self.config, generators)
        sizes = np.array([image.shape[1:] for image in images])  # [B, 2]
        return ImageCrops(self._crops("global", images, uniforms, sizes), self._crops("local", images, uniforms, sizes))

    def _crops(
        self, kind: Literal["global", "local"], images: Sequence[Tensor], uniforms: np.ndarray, sizes: np.ndarray
    ) -> Tensor:
        config = self.config
        count = config.global_crops if kind == "global" else config.local_crops
        size = height_width(config.global_size if kind == "global" else config.local_size)
        crops = torch.empty(count, len(images), self.channels, *size, dtype=torch.uint8)  # [V, B, C, h, w]
        if not count:
            return crops
        parameters = draw_parameters(config, kind, uniforms, sizes, channels=self.channels)
        step = max(1, CHUNK_VALUES // (self.channels * size[0] * size[1]))
        for start in range(0, len(parameters), step):
            numbers = np.arange(start, min(start + step, len(parameters)))
            planes = render([images[n // count] for n in numbers], parameters[numbers], size)  # [C, n, h, w]
            rows, columns = torch.from_numpy(numbers % count), torch.from_numpy(numbers // count)
            crops[rows, columns] = planes.round_().to(torch.uint8).transpose(0, 1)  # [n, C, h, w]
        return crops


def render(images: list[Tensor], parameters: CropParameters, size: tuple[int, int]) -> Tensor:
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
    colour.on_rows(planes, parameters.grey, colour.turn_grey)
    blurred = parameters.sigma >= crop.SMALLEST_SIGMA
    colour.on_rows(planes, blurred, lambda some: crop.blur(some, parameters.sigma[blurred]))
    colour.on_rows(planes, parameters.solarize, colour.solarize)
    return planes
