"""Mean and standard deviation of each channel, and value ranges, measured on a bounded sample of the images."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from mst.data.decoding import UnreadableImage, read_image
from mst.data.files.kinds import ENOUGH
from mst.data.formats.npy import LONGEST_HEADER, NPY_MAGIC, array_header
from mst.data.formats.tiff import MAGIC as TIFF_MAGIC
from mst.data.formats.tiff import pillow_reads
from mst.data.sources.protocol import ImageSource, even_positions
from mst.data.value_range import BY_TYPE, GIVEN, Meter, Scale, ValueRanges, likely_range, span_text
from mst.errors import DataError
from mst.runtime.images import PNG_MAGIC, open_image

MEASURED_IMAGES = 256
"""Images that are read, at even distances: enough for two digits, a few seconds of decoding."""
SMALLEST_STD = 1 / 255
"""One grey level: the deviation of a constant channel."""
DIGITS = 4
STRIP = 1 << 20
"""Pixels whose sums are taken at once."""
FEW, HEAVY = 32, 1 << 28
"""Where so many images that are not stored in 8 bits have so many bytes, the value range is measured on them alone."""

Values = tuple[float, ...]


def channel_statistics(
    images: ImageSource, *, channels: int, sample: int = MEASURED_IMAGES, scale: Scale = BY_TYPE
) -> tuple[Values, Values]:
    """Return mean and standard deviation of the pixels of each channel, in [0, 1].

    Every image counts alike, whatever its size; unreadable ones are passed over. The same images give the same values.

    Args:
        images: the data set.
        channels: C.
        sample: at most this many images are read.
        scale: see `mst.data.decoding.decode_image`.

    Raises:
        DataError: none of the sample can be decoded.
    """
    first = torch.zeros(channels, dtype=torch.float64)  # [C]
    second = torch.zeros(channels, dtype=torch.float64)  # [C]
    read = 0
    problem: UnreadableImage | None = None
    for position in even_positions(len(images), sample).tolist():
        try:
            pixels = read_image(images, position, channels=channels, scale=scale)
        except UnreadableImage as unreadable:
            problem = problem or unreadable
            continue
        mean, square = (torch.tensor(part, dtype=torch.float64) for part in moments(pixels))
        del pixels  # before the next one comes
        first += mean
        second += square
        read += 1
    if not read:
        tried = min(sample, len(images))
        raise DataError(f"none of {tried} images can be decoded to measure mean and std; the first: {problem}")
    mean = first / read
    std = (second / read - mean.square()).clamp(min=0).sqrt().clamp(min=SMALLEST_STD)
    return _rounded(mean), _rounded(std)


def moments(pixels: Tensor) -> tuple[Values, Values]:
    """Return the means of the values in [0, 1] and of their squares, by channel: pixels uint8 [C, H, W]."""
    rows = max(1, STRIP // pixels.shape[-1])
    sums = torch.zeros(2, pixels.shape[0], dtype=torch.float64)
    for top in range(0, pixels.shape[1], rows):
        sums += sums_of(pixels[:, top : top + rows].flatten(1))
    sums /= pixels.shape[1] * pixels.shape[2]
    return tuple(sums[0].tolist()), tuple(sums[1].tolist())


def sums_of(values: Tensor) -> Tensor:
    """Return the sums of values and squares in [0, 1], float64 [2, C], of uint8 [C, n]."""
    scaled = values.double() / 255
    return torch.stack([scaled.sum(1), scaled.square().sum(1)])


def _rounded(values: torch.Tensor) -> Values:
    return tuple(round(value, DIGITS) for value in values.tolist())


def measured_ranges(images: ImageSource, *, channels: int, known: ValueRanges) -> ValueRanges:
    """Return the value ranges of what the images are stored as, measured on a sample of them.

    Of images in 8 bits and of such that say themselves what is white only the first bytes are read. The same images
    give the same ranges.

    Args:
        images: the data set.
        channels: C.
        known: ranges that are known already; they stay, and one that was given is all there is.

    Raises:
        DataError: values in which no usual range can be seen; the message says how to give one.
        MissingExtra: a TIFF that needs tifffile.
    """
    if GIVEN in known.ranges:
        return known
    sample = even_positions(len(images), MEASURED_IMAGES).tolist()
    deep = [position for position in sample if may_be_deep(images, position)]
    few = [deep[place] for place in even_positions(len(deep), FEW).tolist()]
    meter = Meter()
    for position in few if _bytes_of(images, few) > HEAVY else deep:
        try:
            read_image(images, position, channels=channels, scale=meter)
        except UnreadableImage:
            continue
    found = dict(known.ranges)
    for kind, (low, high) in sorted(meter.found.items()):
        likely = known.ranges.get(kind) or likely_range(kind, low, high)
        if likely is None:
            raise DataError(
                f"the images have {kind} pixels from {span_text(low, high)}: what is black and what is white "
                f"among them is not known: give it with {known.option} LO HI"
            )
        found[kind] = likely
    return ValueRanges(found, known.option, frozenset(meter.found))


def measured_scale(images: ImageSource, *, channels: int, known: ValueRanges | None) -> Scale:
    """Return how a data set's values become 8 bits: `measured_ranges`, or where None is known each image decides.

    Raises:
        DataError, MissingExtra: as `measured_ranges`.
    """
    return BY_TYPE if known is None else measured_ranges(images, channels=channels, known=known)


def _bytes_of(images: ImageSource, positions: Sequence[int]) -> int:
    total = 0
    for position in positions:
        try:
            total += images.size(position)
        except OSError:
            continue
    return total


def may_be_deep(images: ImageSource, position: int) -> bool:
    """Return whether an image may hold other values than 8 bits or such as it says the range of; quick."""
    try:
        head = images.read_bytes(position, ENOUGH)
        if head.startswith(PNG_MAGIC):
            return head[24:25] == b"\x10"
        if head.startswith(TIFF_MAGIC):
            data = images.read_bytes(position)
            if not pillow_reads(data):
                return True
            with open_image(data) as image:
                return image.mode[0] in "IF" or 16 in image.tag_v2.get(258, ())  # type: ignore[attr-defined]
        if head.startswith(NPY_MAGIC):  # of uint8 or truth values?
            start = io.BytesIO(images.read_bytes(position, LONGEST_HEADER))
            return array_header(start)[2] not in {np.dtype(np.uint8), np.dtype(np.bool_)}
    except Exception:  # whatever damaged bytes raise: the decoder's word counts
        return True
    return False
