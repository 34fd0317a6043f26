"""What a data set looks like, measured on a sample: sizes, grey or coloured, fine structure, near-duplicates.

The same images give the same facts. Sources: difference hashes (Krawetz 2013) at 16 x 16 for near-duplicates.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from mst.config.facts import SetFacts
from mst.data.decoding import UnreadableImage, read_image
from mst.data.formats.jpeg import Detail
from mst.data.sources.protocol import ImageSource, even_positions
from mst.data.value_range import BY_TYPE, Scale
from mst.errors import DataError

PAIRS = 48
"""Pairs of neighbours in the list that are read: near-duplicates, such as frames of a film, lie beside each other."""
LARGEST = 512
"""Side in pixels at which fine structure is measured; larger JPEGs are read at a part of their size."""
HASH = 16
"""Rows and columns of a difference hash."""
KEPT = 0.9
"""Share of an image's fine structure that is to be kept."""
NEARLY = 0.1
"""Share of a hash's bits in which two images that are nearly the same may differ."""
SAME_GREY = 4
"""Most levels between the channels of a grey pixel: JPEG rounds each by itself."""

Bits = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class _Look:
    """One image."""

    size: tuple[int, int]
    grey: bool
    detail: float
    bits: Bits


def look_at(images: ImageSource, *, channels: int, scale: Scale = BY_TYPE) -> SetFacts:
    """Return what a data set looks like.

    Args:
        images: all of them.
        channels: to read; 3 for photographs, grey ones too.
        scale: see `mst.data.decoding.decode_image`.

    Raises:
        DataError: no image of the sample can be read.
    """
    first = even_positions(len(images), PAIRS)
    positions = sorted({*first.tolist(), *np.minimum(first + 1, len(images) - 1).tolist()})
    looks: list[_Look] = []
    problem: UnreadableImage | None = None
    for position in positions:
        try:
            pixels = read_image(
                images, position, channels=channels, scale=scale, enough=Detail(LARGEST * LARGEST, LARGEST)
            )
        except UnreadableImage as unreadable:
            problem = problem or unreadable
            continue
        looks.append(_look(pixels))
    if not looks:
        raise DataError(f"none of the {len(positions)} images looked at can be decoded; the first: {problem}")
    return _joined(looks, len(images), channels)


def _joined(looks: Sequence[_Look], count: int, channels: int) -> SetFacts:
    """Return the facts of a sample."""
    height, width = (round(statistics.median(look.size[axis] for look in looks)) for axis in (0, 1))
    return SetFacts(
        count=count,
        size=(height, width),
        channels=channels,
        grey=channels == 1 or (channels == 3 and all(look.grey for look in looks)),
        detail=round(statistics.median(look.detail for look in looks)),
        alike=round(alike_share([look.bits for look in looks]), 3),
    )


def _look(pixels: Tensor) -> _Look:
    """Look at one image: uint8 [C, H, W]."""
    H, W = pixels.shape[-2:]
    spread = (pixels.amax(0).int() - pixels.amin(0).int()).amax()
    plane = pixels.float().mean(0) / 255  # [H, W]
    return _Look((H, W), bool(spread <= SAME_GREY), detail_side(plane), difference_hash(plane))


def detail_side(plane: Tensor, share: float = KEPT) -> float:
    """Return the side in pixels at which an image keeps nine tenths of its fine structure.

    Fine structure is the power of its slopes: the spectrum times the squared frequency. A picture of n pixels a side
    holds the frequencies up to n / 2 periods.

    Args:
        plane: grey values [H, W].
        share: to be kept.

    Returns:
        From 1 to the shorter side, at most `LARGEST`; the shorter side for an image without any structure.
    """
    side = min(plane.shape)
    if side > LARGEST:
        shape = [max(round(length * LARGEST / side), 1) for length in plane.shape]
        plane = F.interpolate(plane[None, None], shape, mode="bilinear", antialias=True)[0, 0]
        side = LARGEST
    plane = plane[:side, :side] if side < 4 else _middle(plane, side)
    window = torch.hann_window(side, periodic=False) if side >= 4 else torch.ones(side)
    spectrum = torch.fft.rfft2((plane - plane.mean()) * window[:, None] * window[None, :]).abs().square()
    down = torch.fft.fftfreq(side)[:, None] * side  # periods a side
    along = torch.fft.rfftfreq(side)[None, :] * side
    reach = torch.maximum(down.abs(), along.abs())
    power = spectrum * (down.square() + along.square())
    total = float(power.sum())
    if total <= 1e-9:
        return float(side)
    by_reach = torch.zeros(side // 2 + 1).index_add_(
        0, reach.round().long().flatten().clamp(max=side // 2), power.flatten()
    )
    needed = int(torch.searchsorted(by_reach.cumsum(0), share * total))
    return float(min(max(2 * needed, 1), side))


def _middle(plane: Tensor, side: int) -> Tensor:
    top, left = (plane.shape[0] - side) // 2, (plane.shape[1] - side) // 2
    return plane[top : top + side, left : left + side]


def difference_hash(plane: Tensor) -> Bits:
    """Return whether each of 16 x 16 places is brighter than its left neighbour: [256]."""
    small = F.interpolate(plane[None, None], (HASH, HASH + 1), mode="bilinear", antialias=True)[0, 0]
    found: Bits = (small[:, 1:] > small[:, :-1]).flatten().numpy()
    return found


def alike_share(hashes: Sequence[Bits]) -> float:
    """Return the share of images whose hash is nearly that of another one."""
    if len(hashes) < 2:
        return 0.0
    bits = np.stack(hashes).astype(np.float32)  # [n, 256]
    apart = bits @ (1 - bits.T) + (1 - bits) @ bits.T  # [n, n]
    np.fill_diagonal(apart, np.inf)
    return float((apart.min(1) <= NEARLY * bits.shape[1]).mean())
