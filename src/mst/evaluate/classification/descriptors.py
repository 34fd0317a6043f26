"""Images in a few numbers without any network: statistics of their colours and edges, and their pixels, very small.

What a classifier reaches with these costs nothing; a backbone that reaches no more has learnt nothing worth its time.

Letters: C channels, H W pixels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)
HALVINGS = 3
"""Edges are measured at full size, at half of it and at a quarter: coarse and fine texture."""
DIRECTIONS = 8
"""Bins of the edges' directions, over half a turn."""
PIXEL_NUMBERS = 1024
"""Numbers that the small pixels have at most."""
SIDE = 8
"""Height and width of the small picture, where that gives no more than `PIXEL_NUMBERS` numbers."""


def colour_statistics(image: Tensor) -> Tensor:
    """Return statistics of a uint8 image [C, H, W]: float32 [17 C + (C - 1) + 8].

    For each channel mean, deviation, skewness, seven quantiles, the share of black, and the mean change from pixel to
    pixel, downwards and to the right, at three sizes; the correlation of neighbouring channels; and how the edges of
    their mean are directed.
    """
    channels = image.shape[0]
    values = image.float() / 255  # [C,H,W]
    flat = values.flatten(1)  # [C,H*W]
    mean, std = flat.mean(1), flat.std(1, correction=0)  # [C]
    centred = flat - mean[:, None]
    scale = std.clamp(min=1 / 255)
    skew = centred.pow(3).mean(1) / scale.pow(3)
    black = (flat == 0).float().mean(1)  # [C]
    parts = [mean, std, skew, *quantiles(image), black, *edges(values)]
    neighbours = (centred[1:] * centred[:-1]).mean(1) / (scale[1:] * scale[:-1])  # [C-1]
    found = torch.cat([torch.cat([part.reshape(channels) for part in parts]), neighbours, directions(values.mean(0))])
    return found.nan_to_num()


def quantiles(image: Tensor) -> list[Tensor]:
    """Return the quantiles `QUANTILES` of each channel of a uint8 image [C, H, W], in [0, 1]: each [C]."""
    pixels = image.shape[1] * image.shape[2]
    counts = torch.stack([torch.bincount(channel.flatten().long(), minlength=256) for channel in image])  # [C,256]
    upto = counts.cumsum(1)  # [C,256]
    levels = [(upto < max(1, round(share * pixels))).sum(1) for share in QUANTILES]  # the first that has so many
    return [level.float() / 255 for level in levels]


def edges(values: Tensor) -> list[Tensor]:
    """Return the mean absolute change downwards and to the right of [C, H, W], at `HALVINGS` sizes: each [C]."""
    found = []
    for _ in range(HALVINGS):
        for axis in (1, 2):
            change = values.diff(dim=axis).abs()
            found.append(change.mean((1, 2)) if change.numel() else values.new_zeros(len(values)))
        if min(values.shape[1:]) > 1:
            values = F.avg_pool2d(values, 2)
    return found


def directions(grey: Tensor) -> Tensor:
    """Return the share of the edges of [H, W] in each of `DIRECTIONS` directions, weighted by their strength.

    Level, upright and diagonal edges lie in the middle of their bin: at its border rounding would choose.
    """
    if min(grey.shape) < 2:
        return grey.new_zeros(DIRECTIONS)
    down, right = grey.diff(dim=0)[:, :-1], grey.diff(dim=1)[:-1]  # [H-1,W-1]
    strength = torch.hypot(down, right).flatten()
    angle = torch.atan2(down, right).flatten().remainder(torch.pi)
    place = (angle / torch.pi * DIRECTIONS).round().long() % DIRECTIONS
    sums = grey.new_zeros(DIRECTIONS).index_add_(0, place, strength)
    return sums / strength.sum().clamp(min=1e-12)


def small_pixels(image: Tensor) -> Tensor:
    """Return the image [C, H, W], uint8, as a picture of 8 x 8 pixels (fewer for very many channels): float32 [C s s].

    Each pixel is the mean of its part of the image.
    """
    side = max(1, min(SIDE, int((PIXEL_NUMBERS / image.shape[0]) ** 0.5)))
    return F.adaptive_avg_pool2d(image.float() / 255, side).flatten()
