"""Statistics of an image's colours and edges, one pixel at a time."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np


def colour_statistics(image: np.ndarray, quantiles: Sequence[float]) -> np.ndarray:
    """Return the statistics of an image [C, H, W], uint8, in the order of `mst`'s: by statistic, then by channel.

    Mean, deviation, skewness, quantiles, share of black, mean change downwards and to the right at three sizes; then
    the correlation of neighbouring channels, then the directions of the edges of their mean.
    """
    values = image.astype(np.float64) / 255
    channels = len(values)
    columns = [_channel(values[c], image[c], quantiles) for c in range(channels)]
    found = [columns[c][k] for k in range(len(columns[0])) for c in range(channels)]
    for c in range(channels - 1):
        first, second = values[c + 1].ravel(), values[c].ravel()
        product = float(np.mean((first - first.mean()) * (second - second.mean())))
        found.append(product / (max(first.std(), 1 / 255) * max(second.std(), 1 / 255)))
    return np.array([*found, *_directions(values.mean(0))])


def _channel(values: np.ndarray, levels: np.ndarray, quantiles: Sequence[float]) -> list[float]:
    flat = values.ravel()
    scale = max(float(flat.std()), 1 / 255)
    ordered = np.sort(levels.ravel())
    found = [float(flat.mean()), float(flat.std()), float(np.mean((flat - flat.mean()) ** 3)) / scale**3]
    found += [float(ordered[max(1, round(share * len(ordered))) - 1]) / 255 for share in quantiles]
    found.append(float(np.mean(levels == 0)))
    for _ in range(3):
        height, width = values.shape
        down = [abs(values[y + 1, x] - values[y, x]) for y in range(height - 1) for x in range(width)]
        right = [abs(values[y, x + 1] - values[y, x]) for y in range(height) for x in range(width - 1)]
        found += [float(np.mean(down)) if down else 0.0, float(np.mean(right)) if right else 0.0]
        if min(height, width) > 1:
            values = np.array(
                [
                    [values[2 * y : 2 * y + 2, 2 * x : 2 * x + 2].mean() for x in range(width // 2)]
                    for y in range(height // 2)
                ]
            )
    return found


def _directions(grey: np.ndarray) -> list[float]:
    sums = [0.0] * 8
    if min(grey.shape) < 2:
        return sums
    for y in range(grey.shape[0] - 1):
        for x in range(grey.shape[1] - 1):
            down, right = grey[y + 1, x] - grey[y, x], grey[y, x + 1] - grey[y, x]
            angle = math.atan2(down, right) % math.pi
            sums[math.floor(angle / math.pi * 8 + 0.5) % 8] += math.hypot(down, right)
    total = max(sum(sums), 1e-12)
    return [each / total for each in sums]
