"""From positions in an epoch to transformed samples: decode, replace the unreadable, keep the small in memory.

What a `SampleReader` returns depends on nothing but (seed, epoch, position) and the files, so threads and processes
may share the work in any way.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from mst.data.decoding import UnreadableImage, read_image
from mst.data.formats.card import CardDecoder
from mst.data.formats.jpeg import Detail
from mst.data.order.epochs import ComputedOrder, EpochOrder, OrderKind
from mst.data.sources.protocol import ImageSource
from mst.data.value_range import BY_TYPE, Scale
from mst.errors import DataError
from mst.runtime.device import to_device
from mst.runtime.seeding import generator

Transform = Callable[[Sequence[Tensor], Sequence[torch.Generator]], tuple[Tensor, ...]]
"""(b images uint8 [C, H, W] of any sizes, each sample's generator) -> tensors stacked by sample, each [b, ...].

What it makes of a sample must not depend on the samples beside it, and it must not write into an image, which may be
kept for the next epoch.
"""

MOST_IN_A_ROW = 64
"""Unreadable files one after the other at which a sample gives up: no plausible data set does that by chance."""

AHEAD = 8192
"""Places of the order that a source is told of before they are read."""
AT_ONCE = 1 << 28
"""Bytes of decoded images from which a part of a chunk is transformed before the next images are read."""

LARGEST_KEPT = 256 * 256 * 3
"""Bytes of the largest image that is worth keeping in memory: decoding a larger one gains too little per byte."""


class Places(NamedTuple):
    """So many consecutive positions of an epoch's order, from `first` on."""

    epoch: int
    first: int
    samples: int


class Chunk(NamedTuple):
    """Some consecutive samples of a batch.

    Attributes:
        tensors: the transform's results, stacked: each [b, ...].
        indices: the image that each sample shows, replacements included: int64 [b].
        read: every image that was tried, int64 [>= b].
        unreadable: (image, reason) of those that failed.
    """

    tensors: tuple[Tensor, ...]
    indices: Tensor
    read: Tensor
    unreadable: list[tuple[int, str]]


class ImageCache:
    """Decoded small images, kept until the budget is spent; what is in stays in."""

    def __init__(self, budget: int) -> None:
        self.room = budget
        self._images: dict[int, Tensor] = {}

    def get(self, index: int) -> Tensor | None:
        """Return a kept image or None."""
        return self._images.get(index)

    def offer(self, index: int, image: Tensor) -> None:
        """Keep the image if it is small and there is room."""
        size = image.numel() + 1024  # the tensor itself, about
        if image.numel() <= LARGEST_KEPT and size <= self.room:
            self.room -= size
            self._images[index] = image


@dataclass
class SampleReader:
    """Reads samples by (epoch, position).

    Attributes:
        images: all of them.
        transform: applied to the decoded images of a chunk.
        channels: of the decoded images.
        seed: of the order and of each sample's generator.
        enough: see `decode_image`.
        scale: see there as well.
        cache: None = decode every time.
        card: decodes JPEGs where the transform works on a CUDA device; all images are then on that device.
        order: of the images in an epoch, see `mst.data.order`.
    """

    images: ImageSource
    transform: Transform
    channels: int
    seed: int
    enough: Detail | None = None
    cache: ImageCache | None = None
    scale: Scale = BY_TYPE
    card: CardDecoder | None = None
    order: OrderKind = "global"

    def __post_init__(self) -> None:
        self._order = EpochOrder(self.images, self.seed, kind=self.order)
        self._expected = -1, 0

    def read(self, places: Places) -> Chunk:
        """Return the samples at these places.

        Raises:
            DataError: `MOST_IN_A_ROW` files in a row, or all there are, cannot be read.
        """
        epoch, first, count = places
        order = self._order.of(epoch)
        self._expect(epoch, first)
        images: list[Tensor] = []
        made: list[tuple[Tensor, ...]] = []
        indices: list[int] = []
        read: list[int] = []
        unreadable: list[tuple[int, str]] = []
        if self.card is not None:
            self.card.expect(int(order[position % len(order)]) for position in range(first, first + count))
        for position in range(first, first + count):
            images.append(self._image_at(order, position, read, unreadable))
            indices.append(read[-1])
            if position == first + count - 1 or sum(image.numel() for image in images) > AT_ONCE:
                some = range(position + 1 - len(images), position + 1)
                made.append(self.transform(images, [generator(self.seed, epoch, place) for place in some]))
                images = []
        tensors = made[0] if len(made) == 1 else tuple(torch.cat(parts) for parts in zip(*made, strict=True))
        return Chunk(tensors, torch.tensor(indices), torch.tensor(read), unreadable)  # tensors each [count, ...]

    def _expect(self, epoch: int, first: int) -> None:
        """Tell the source which images come next, half of `AHEAD` at a time."""
        known, end = self._expected
        begin = max(first, end) if known == epoch else first
        if first + AHEAD // 2 > begin or known != epoch:
            self._expected = epoch, first + AHEAD
            self.images.expect(self._order.span(epoch, begin, first + AHEAD))

    def _image_at(
        self, order: Tensor | ComputedOrder, position: int, read: list[int], unreadable: list[tuple[int, str]]
    ) -> Tensor:
        """Return the image at a position of the order, or else the next readable one after it; note what was tried."""
        tries = min(len(order), MOST_IN_A_ROW)
        for offset in range(tries):
            index = int(order[(position + offset) % len(order)])
            read.append(index)
            try:
                return self._decoded(index)
            except UnreadableImage as error:
                unreadable.append((index, error.reason))
        raise DataError(
            f"{tries} images in a row could not be read, the last: {self.images.name(index)}: {unreadable[-1][1]};"
            " mend or remove them"
        )

    def _decoded(self, index: int) -> Tensor:
        """Return the image, from memory if it is there: uint8 [C, H, W]."""
        if self.card is not None and (found := self.card.take(self.images.read_bytes, index)) is not None:
            return found
        image = None if self.cache is None else self.cache.get(index)
        if image is None:
            image = read_image(self.images, index, channels=self.channels, enough=self.enough, scale=self.scale)
            if self.cache is not None:
                self.cache.offer(index, image)
        return image if self.card is None else to_device(image, self.card.device)


def quarter_of_memory() -> int:
    """Return a quarter of the machine's memory, or of the container's limit if that is less, in bytes."""
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    for limit in (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes")):
        try:
            total = min(total, int(limit.read_text()))
        except (OSError, ValueError):  # no such file, or "max"
            continue
    return total // 4
