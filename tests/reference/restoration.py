"""Restoration error and PSNR, one pixel at a time.

Source: MST (Li et al. 2021), section 3.3 (whole image); L1 in normalised pixels is this project's choice. PSNR:
10 log10(range^2 / mean squared error), range 1 for pixels in [0, 1].
"""

from __future__ import annotations

import math

import numpy as np


def mean_absolute_error(reconstruction: np.ndarray, target: np.ndarray, pixels: np.ndarray | None = None) -> float:
    """Return the mean |reconstruction - target| of [B, C, H, W] over the True pixels [B, H, W] (None = all)."""
    errors = [
        abs(float(reconstruction[b, c, y, x]) - float(target[b, c, y, x]))
        for b, c, y, x in np.ndindex(target.shape)
        if pixels is None or pixels[b, y, x]
    ]
    return sum(errors) / len(errors) if errors else math.nan


def pixel_mask(mask: np.ndarray, grid: tuple[int, int], patch_size: int) -> np.ndarray:
    """Return which pixels [B, H, W] belong to masked tokens, for a token mask [B, N] in row-major order of the grid."""
    height, width = grid
    pixels = np.zeros((len(mask), height * patch_size, width * patch_size), dtype=bool)
    for b, y, x in np.ndindex(pixels.shape):
        pixels[b, y, x] = mask[b, (y // patch_size) * width + x // patch_size]
    return pixels


def psnr(reconstruction: np.ndarray, target: np.ndarray, pixels: np.ndarray | None, std: list[float]) -> float:
    """Return the PSNR in dB of normalised [B, C, H, W] brought back to [0, 1] units by `std`, over the True pixels."""
    squares = [
        ((float(reconstruction[b, c, y, x]) - float(target[b, c, y, x])) * std[c]) ** 2
        for b, c, y, x in np.ndindex(target.shape)
        if pixels is None or pixels[b, y, x]
    ]
    return -10.0 * math.log10(sum(squares) / len(squares)) if squares else math.nan


def mean_colour_fill(images: np.ndarray, hidden: np.ndarray) -> np.ndarray:
    """Every pixel of an image [B, C, H, W] gets the mean colour of those that are not hidden [B, H, W]; else 0."""
    filled = np.zeros_like(images)
    for number, image in enumerate(images):
        visible = ~hidden[number]
        for channel, plane in enumerate(image):
            filled[number, channel] = plane[visible].mean() if visible.any() else 0.0
    return filled
