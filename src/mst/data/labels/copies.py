"""Images with the same bytes, found without reading all: by size, then by their beginnings, then as a whole."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Hashable, Iterator, Sequence

import numpy as np
import numpy.typing as npt

from mst.data.sources import ImageSource
from mst.data.sources.mixed import MixedImages

HEAD = 4096
"""Bytes of images of equal size that are compared first."""


def copies_of(images: ImageSource) -> npt.NDArray[np.int64]:
    """Return for each image the position of the first one with the same bytes, its own if there is none before."""
    first = np.arange(len(images), dtype=np.int64)
    for equal in _equal(images, lambda group: len(group) > 1):
        first[equal] = equal[0]
    return first


def positions_of(images: ImageSource, others: ImageSource) -> npt.NDArray[np.int64]:
    """Return which of `images` have the path or the bytes of any of `others`: their positions, in order.

    Where a source does not know the sizes of its images, names alone count.
    """
    names = {others.name(position) for position in range(len(others))}
    found = {position for position in range(len(images)) if images.name(position) in names}
    if images.sized and others.sized:
        count = len(others)  # of the images before those of `images`
        for equal in _equal(MixedImages.of([others, images]), lambda group: group[0] < count <= group[-1]):
            found.update(position - count for position in equal if position >= count)
    return np.array(sorted(found), dtype=np.int64)


def _equal(images: ImageSource, wanted: Callable[[Sequence[int]], bool]) -> Iterator[list[int]]:
    """Yield the groups of images with the same bytes, in order of position; only groups that are wanted are read."""
    for group in filter(wanted, _alike(range(len(images)), images.size)):
        for alike in filter(wanted, _alike(group, lambda position: bytes(images.read_bytes(position, HEAD)[:HEAD]))):
            yield from filter(wanted, _alike(alike, lambda place: hashlib.sha256(images.read_bytes(place)).digest()))


def _alike(positions: Sequence[int], key: Callable[[int], Hashable]) -> list[list[int]]:
    """Return the groups of positions with one key; what cannot be read is like nothing."""
    found: dict[Hashable, list[int]] = {}
    for position in positions:
        try:
            found.setdefault(key(position), []).append(position)
        except OSError:
            continue
    return list(found.values())
