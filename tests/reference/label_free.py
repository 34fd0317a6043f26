"""Scores without labels, one crop and one pixel at a time."""

from __future__ import annotations

import math

import numpy as np


def retrieval(one: np.ndarray, other: np.ndarray) -> float:
    """Return in percent how often the other crop of an image is nearer than every other image's, in both directions.

    Features [N, D] of the first and the second crop of N images; cosine similarity; a tie is no hit.
    """
    hits = []
    for queries, found in ((one, other), (other, one)):
        for image, query in enumerate(queries):
            near = [float(query @ each) / float(np.linalg.norm(query) * np.linalg.norm(each)) for each in found]
            hits.append(all(near[image] > value for place, value in enumerate(near) if place != image))
    return 100 * sum(hits) / len(hits)


def restoration_gain(images: np.ndarray, restored: np.ndarray, hidden: np.ndarray) -> float:
    """Return the PSNR of hidden pixels less that of the mean colour of each image's other pixels, in decibels.

    Images and restored ones [N, C, H, W] in [0, 1], hidden [N, H, W], bool.
    """
    by_network, by_colour, count = 0.0, 0.0, 0
    for image, guess, mask in zip(images, restored, hidden, strict=True):
        for channel, guessed in zip(image, guess, strict=True):
            colour = channel[~mask].mean()
            by_network += float(((guessed[mask] - channel[mask]) ** 2).sum())
            by_colour += float(((colour - channel[mask]) ** 2).sum())
            count += int(mask.sum())
    return 10 * math.log10(count / by_network) - 10 * math.log10(count / by_colour)
