"""Random parameters of the crops of one image, drawn before anything is applied.

Distributions are DINO's (Caron et al. 2021, section 3.2 and its released recipe) with torchvision's sampling of the crop
box and of the jitter's order. Each crop takes one row of `DRAWS` uniform numbers of a fixed layout, so that drawing is
one call per image, a change of one setting never shifts the randomness of another, and a whole batch is vectorised.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Literal, Self

import numpy as np
import torch
from numpy.typing import NDArray

from mst.config.schema import Size, ViewsConfig

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
Booleans = NDArray[np.bool_]

ATTEMPTS = 10
"""Boxes tried before the central crop, as in torchvision's RandomResizedCrop."""
RATIO = (3 / 4, 4 / 3)
"""Range of width over height of a box."""
DRAWS = 2 * ATTEMPTS + 16
"""Uniform numbers of one crop: area and ratio of each attempt, top, left, flip, jitter, the order's four keys,
brightness, contrast, saturation, hue, grey, blur, sigma, solarize."""
OPERATIONS = ("brightness", "contrast", "saturation", "hue")
"""The jitter's operations; `CropParameters.order` holds indices into this tuple."""
REFERENCE_SIZE = 224
"""The blur's standard deviation is configured in pixels of a crop of this size."""


@dataclass(frozen=True)
class CropParameters:
    """What happens to n crops of one output size, in the order of the fields; every field is an array of length n.

    Attributes:
        top, left, height, width: the box in the source image, pixels.
        flip: mirror horizontally.
        order: [n, 4] the jitter's operations in the order of application, indices into `OPERATIONS`.
        brightness, contrast, saturation: factors; 1 leaves the crop unchanged.
        hue: shift in turns; 0 leaves the crop unchanged.
        grey: replace the colours by their luminance.
        sigma: standard deviation of the Gaussian blur in pixels of the crop; 0 = no blur.
        solarize: invert the values from 128 on.
    """

    top: Integers
    left: Integers
    height: Integers
    width: Integers
    flip: Booleans
    order: Integers
    brightness: Floats
    contrast: Floats
    saturation: Floats
    hue: Floats
    grey: Booleans
    sigma: Floats
    solarize: Booleans

    def __len__(self) -> int:
        return len(self.top)

    def __getitem__(self, rows: slice | Integers | int) -> Self:
        """Return the parameters of some of the crops (an integer keeps the length-1 axis)."""
        if isinstance(rows, int):
            rows = slice(rows, rows + 1)
        return type(self)(**{field.name: getattr(self, field.name)[rows] for field in fields(self)})


def height_width(size: Size) -> tuple[int, int]:
    """Return (H, W) of a configured size."""
    return (size, size) if isinstance(size, int) else size


def draw_uniforms(config: ViewsConfig, generators: Sequence[torch.Generator]) -> Floats:
    """Draw the uniform numbers [B, crops, DRAWS] of B images, global crops first, one call per image."""
    crops = config.global_crops + config.local_crops
    rows = [torch.rand(crops, DRAWS, generator=generator, dtype=torch.float64) for generator in generators]
    return np.stack([row.numpy() for row in rows])


def draw_parameters(
    config: ViewsConfig,
    kind: Literal["global", "local"],
    uniforms: Floats,
    sizes: Integers,
    *,
    channels: int,
) -> CropParameters:
    """Turn uniform numbers into the parameters of all global or all local crops of B images.

    Saturation, hue and grey are defined for three channels only: with any other number of `channels` they are off, and
    the remaining draws do not change.

    Args:
        config: the augmentation's settings.
        kind: which crops; global crop 0 has a blur probability of its own and is never solarized.
        uniforms: [B, crops, DRAWS] of `draw_uniforms`.
        sizes: (H, W) of each image, [B, 2].
        channels: channels of the images.

    Returns:
        Parameters of `B * crops_of_this_kind` crops, image by image.
    """
    is_global = kind == "global"
    first, last = (0, config.global_crops) if is_global else (config.global_crops, uniforms.shape[1])
    u = uniforms[:, first:last].reshape(-1, DRAWS).T  # [DRAWS, n]
    position = np.tile(np.arange(last - first), len(uniforms))  # [n] crop's number within its image
    boxes, rest = u[: 2 * ATTEMPTS + 2], u[2 * ATTEMPTS + 2 :]
    scale = config.global_scale if is_global else config.local_scale
    top, left, height, width = draw_boxes(boxes, np.repeat(sizes, last - first, axis=0), scale)

    jitter = rest[1] < config.jitter
    coloured = jitter & (channels == 3)
    size = height_width(config.global_size if is_global else config.local_size)
    sigma = _between(rest[12], config.blur_sigma) * math.sqrt(size[0] * size[1]) / REFERENCE_SIZE
    blur = np.where(position == 0, config.blur[0], config.blur[1]) if is_global else config.blur[2]
    return CropParameters(
        top=top,
        left=left,
        height=height,
        width=width,
        flip=rest[0] < config.flip,
        order=np.argsort(rest[2:6], axis=0, kind="stable").T,
        brightness=np.where(jitter, _factor(rest[6], config.brightness), 1.0),
        contrast=np.where(jitter, _factor(rest[7], config.contrast), 1.0),
        saturation=np.where(coloured, _factor(rest[8], config.saturation), 1.0),
        hue=np.where(coloured, _between(rest[9], (-config.hue, config.hue)), 0.0),
        grey=(rest[10] < config.grey) & (channels == 3),
        sigma=np.where(rest[11] < blur, sigma, 0.0),
        solarize=(rest[13] < config.solarize) & is_global & (position > 0),
    )


def draw_boxes(u: Floats, sizes: Integers, scale: tuple[float, float]) -> tuple[Integers, Integers, Integers, Integers]:
    """Return top, left, height and width of n boxes: torchvision's RandomResizedCrop.get_params, vectorised.

    A share of the area and a width/height ratio (uniform in its logarithm) are tried up to ten times; when no box fits
    into the image, the largest central box with an allowed ratio is taken.

    Args:
        u: [2 * ATTEMPTS + 2, n] uniform numbers: area and ratio of each attempt alternating, then top and left.
        sizes: (H, W) of the source of each box, [n, 2].
        scale: range of the box's share of the image's area.
    """
    H, W = sizes[:, 0], sizes[:, 1]
    area = H * W * _between(u[0 : 2 * ATTEMPTS : 2], scale)  # [ATTEMPTS, n]
    ratio = np.exp(_between(u[1 : 2 * ATTEMPTS : 2], (math.log(RATIO[0]), math.log(RATIO[1]))))
    widths, heights = np.round(np.sqrt(area * ratio)), np.round(np.sqrt(area / ratio))
    fits = (widths >= 1) & (widths <= W) & (heights >= 1) & (heights <= H)
    chosen, columns, found = fits.argmax(axis=0), np.arange(len(H)), fits.any(axis=0)

    central_width = np.where(H * RATIO[1] < W, np.maximum(np.round(H * RATIO[1]), 1), W)
    central_height = np.where(H * RATIO[0] > W, np.maximum(np.round(W / RATIO[0]), 1), H)
    width = np.where(found, widths[chosen, columns], central_width).astype(np.int64)
    height = np.where(found, heights[chosen, columns], central_height).astype(np.int64)
    top = np.where(found, _integer_below(u[-2], H - height + 1), (H - height) // 2)
    left = np.where(found, _integer_below(u[-1], W - width + 1), (W - width) // 2)
    return top, left, height, width


def _between(u: Floats, limits: tuple[float, float]) -> Floats:
    return limits[0] + u * (limits[1] - limits[0])


def _factor(u: Floats, strength: float) -> Floats:
    return _between(u, (max(0.0, 1.0 - strength), 1.0 + strength))


def _integer_below(u: Floats, count: Integers) -> Integers:
    return np.minimum((u * count).astype(np.int64), count - 1)
