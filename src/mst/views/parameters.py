"""Random parameters of the crops of a batch, drawn before anything is applied.

Distributions are DINO's (Caron et al. 2021 and its released recipe) with torchvision's sampling of the crop box and of
the jitter's order. Each crop takes one row of `DRAWS` uniform numbers of a fixed layout, so that drawing is one call
per image, a change of one setting never shifts the randomness of another, and a whole batch is computed at once.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Self

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
"""The jitter's operations."""
REFERENCE_SIZE = 224
"""The blur's standard deviation is configured for recipes whose global crops have this size, that of local crops, too;
as in DINO, they are blurred as global ones unless `local_blur_sigma` says otherwise."""


COLOUR_NUMBERS = 11
"""Numbers that say what happens to the colours of one crop, see `ColourParameters.as_numbers`."""


@dataclass(frozen=True)
class ColourParameters:
    """What happens to the colours of n crops, in the order of the fields; every field is an array with n rows.

    Attributes:
        order: [n, 4] the jitter's operations in their order of application, indices into `OPERATIONS`; -1 = nothing.
        factors: [n, 4] the factor of each of `OPERATIONS` (hue: a shift in turns).
        grey: replace the colours by their luminance.
        sigma: standard deviation of the Gaussian blur in pixels of the crop; 0 = no blur.
        solarize: invert the values from 128 on.
    """

    order: Integers
    factors: Floats
    grey: Booleans
    sigma: Floats
    solarize: Booleans

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, rows: slice | Integers) -> Self:
        """Return the parameters of some of the crops."""
        return type(self)(*(getattr(self, field.name)[rows] for field in fields(self)))

    def as_numbers(self) -> Floats:
        """Return what happens to the colours as one row of numbers per crop, [n, COLOUR_NUMBERS]."""
        return np.column_stack([self.order, self.factors, self.grey, self.sigma, self.solarize])

    @staticmethod
    def from_numbers(numbers: Floats) -> ColourParameters:
        """Undo `as_numbers`."""
        grey, sigma, solarize = numbers[:, 8:].T
        return ColourParameters(numbers[:, :4].astype(np.int64), numbers[:, 4:8], grey != 0, sigma, solarize != 0)


@dataclass(frozen=True)
class CropParameters(ColourParameters):
    """What happens to n crops: the box is cut out and resized, mirrored, then the colours change.

    Attributes:
        top, left, height, width: the box in the source image, pixels.
        flip: mirror horizontally.
    """

    top: Integers
    left: Integers
    height: Integers
    width: Integers
    flip: Booleans


def height_width(size: Size) -> tuple[int, int]:
    """Return (H, W) of a configured size."""
    return (size, size) if isinstance(size, int) else size


def least_image(config: ViewsConfig) -> tuple[int, int]:
    """Return how many pixels, and of what shorter side, an image needs so that no crop of it enlarges its box."""
    crops = [(config.global_size, config.global_scale[0])]
    if config.local_crops:
        crops.append((config.local_size, config.local_scale[0]))
    sides = [max(height_width(size)) for size, _ in crops]
    # The sides of a box of area a and ratio r are the roots of a / r and a * r.
    pixels = [side**2 * RATIO[1] / share for side, (_, share) in zip(sides, crops, strict=True)]
    return math.ceil(max(pixels)), max(sides)


def draw_uniforms(crops: int, generators: Sequence[torch.Generator]) -> Floats:
    """Draw the uniform numbers [DRAWS, V, B] of B images with V crops each, one call per image."""
    rows = [torch.rand(crops, DRAWS, generator=generator, dtype=torch.float64).numpy() for generator in generators]
    return np.ascontiguousarray(np.stack(rows).T)


def draw_parameters(config: ViewsConfig, uniforms: Floats, sizes: Integers, *, channels: int) -> CropParameters:
    """Turn uniform numbers into the parameters of all crops of B images.

    Saturation, hue and grey are defined for three channels only: with any other number of `channels` they are off, and
    the remaining draws do not change. Only global crop 0 has the first blur probability, and it is never solarized.

    Args:
        config: the augmentation's settings.
        uniforms: [DRAWS, V, B] of `draw_uniforms`; V = G + L, global crops first.
        sizes: (H, W) of each image, [B, 2].
        channels: channels of the images.

    Returns:
        Parameters of V * B crops, crop `v * B + b` being view v of image b.
    """
    B = uniforms.shape[2]
    G, L = config.global_crops, config.local_crops

    def per_view(first: float, others: float, local: float) -> Floats:
        """Return one value per crop [V * B]."""
        return np.repeat([first] + [others] * (G - 1) + [local] * L, B)

    large, small = config.global_scale, config.local_scale
    scale = per_view(large[0], large[0], small[0]), per_view(large[1], large[1], small[1])
    u = uniforms.reshape(DRAWS, -1)  # [DRAWS, n]
    top, left, height, width = draw_boxes(u[: 2 * ATTEMPTS + 2], np.tile(sizes, (G + L, 1)), scale)

    u = u[2 * ATTEMPTS + 2 :]
    centre = np.array([[1.0], [1.0], [1.0], [0.0]])
    reach = np.array([[config.brightness], [config.contrast], [config.saturation], [config.hue]])
    low = np.where(centre > 0, np.maximum(centre - reach, 0), -reach)
    factors = _between(u[6:10], (low, centre + reach))  # [4, n]
    order = u[2:6].argsort(axis=0, kind="stable")  # [4, n]
    active = (u[1] < config.jitter) & (reach > 0) & ((channels == 3) | (np.arange(4) < 2))[:, None]  # [4, n]
    of_global, of_local = config.blur_sigma, config.local_blur_sigma or config.blur_sigma
    sigmas = per_view(of_global[0], of_global[0], of_local[0]), per_view(of_global[1], of_global[1], of_local[1])
    sigma = _between(u[12], sigmas) * _sigma_scale(config.global_size)
    return CropParameters(
        top=top,
        left=left,
        height=height,
        width=width,
        flip=u[0] < config.flip,
        order=np.where(np.take_along_axis(active, order, axis=0), order, -1).T,
        factors=factors.T,
        grey=(u[10] < config.grey) & (channels == 3),
        sigma=np.where(u[11] < per_view(*config.blur), sigma, 0.0),
        solarize=u[13] < per_view(0.0, config.solarize, 0.0),
    )


def draw_boxes(
    u: Floats, sizes: Integers, scale: tuple[Floats, Floats]
) -> tuple[Integers, Integers, Integers, Integers]:
    """Return top, left, height and width of n boxes: torchvision's RandomResizedCrop.get_params, vectorised.

    A share of the area and a width/height ratio (uniform in its logarithm) are tried up to ten times; when no box fits
    into the image, the largest central box with an allowed ratio is taken.

    Args:
        u: [2 * ATTEMPTS + 2, n] uniform numbers: area and ratio of each attempt alternating, then top and left.
        sizes: (H, W) of the source of each box, [n, 2].
        scale: least and largest share of the image's area of each box, [n] each.
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


def _between(u: Floats, limits: tuple[Floats, Floats] | tuple[float, float]) -> Floats:
    return limits[0] + u * (limits[1] - limits[0])


def _sigma_scale(size: Size) -> float:
    """Return how many pixels of a recipe with such global crops are one of the reference (mean of the sides)."""
    return math.sqrt(math.prod(height_width(size))) / REFERENCE_SIZE


def _integer_below(u: Floats, count: Integers) -> Integers:
    return np.minimum((u * count).astype(np.int64), count - 1)
