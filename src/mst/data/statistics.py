"""Mean and standard deviation of each channel, measured on a bounded sample of the images."""

from __future__ import annotations

import torch

from mst.data.decoding import UnreadableImage, decode_image
from mst.data.sources import ImageIndex
from mst.errors import DataError

MEASURED_IMAGES = 256
"""Images that are read, at even distances: enough for two digits, a few seconds of decoding."""
SMALLEST_STD = 1 / 255
"""One grey level: the deviation of a constant channel."""
DIGITS = 4

Values = tuple[float, ...]


def channel_statistics(images: ImageIndex, *, channels: int, sample: int = MEASURED_IMAGES) -> tuple[Values, Values]:
    """Return mean and standard deviation of the pixels of each channel, in [0, 1].

    Every image counts alike, whatever its size; unreadable ones are passed over. The same images give the same values.

    Args:
        images: the data set.
        channels: C.
        sample: at most this many images are read.

    Raises:
        DataError: none of the sample can be decoded.
    """
    first = torch.zeros(channels, dtype=torch.float64)  # [C]
    second = torch.zeros(channels, dtype=torch.float64)  # [C]
    read = 0
    problem: UnreadableImage | None = None
    for path in images.evenly(sample):
        try:
            pixels = decode_image(path, channels=channels).flatten(1).double() / 255  # [C, H*W]
        except UnreadableImage as unreadable:
            problem = problem or unreadable
            continue
        first += pixels.mean(dim=1)
        second += pixels.square().mean(dim=1)
        read += 1
    if not read:
        tried = min(sample, len(images))
        raise DataError(f"none of {tried} images can be decoded to measure mean and std; the first: {problem}")
    mean = first / read
    std = (second / read - mean.square()).clamp(min=0).sqrt().clamp(min=SMALLEST_STD)
    return _rounded(mean), _rounded(std)


def _rounded(values: torch.Tensor) -> Values:
    return tuple(round(value, DIGITS) for value in values.tolist())
