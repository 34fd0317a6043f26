"""The order of every epoch of a training, whatever the number of images and the weights of their sources.

An epoch shows each image once. With weights it shows each of a source's n images w times: w n samples, rounded. A
weight that is no whole number goes on in the next epoch where this one stopped, in passes of their own shuffle, so that
after any number of epochs no image was shown more than once more often than another of its source.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Literal

import numpy as np
import numpy.typing as npt
from torch import Tensor

from mst.data.order.permutation import Permutation
from mst.data.order.shards import ShardsOrder
from mst.data.sampler import sample_order
from mst.data.sources.protocol import ImageSource
from mst.errors import UsageError

OrderKind = Literal["global", "shards"]
LISTED = 1 << 22
"""Samples of an epoch up to which its order is drawn as a list; that of more is computed place by place."""
BLOCK = 256
"""Places that are computed together."""
Integers = npt.NDArray[np.int64]


@dataclass(eq=False)
class ComputedOrder:
    """An order of which only the places asked for exist.

    Attributes:
        size: of the epoch.
        images: from places to images.
    """

    size: int
    images: Callable[[Integers], Integers]
    _kept: tuple[int, Integers] = field(default_factory=lambda: (-1, np.zeros(0, np.int64)))

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, place: int) -> int:
        """Return the image at a place."""
        number, inside = divmod(place, BLOCK)
        kept = self._kept
        if kept[0] != number:
            self._kept = kept = number, self.span(number * BLOCK, (number + 1) * BLOCK)
        return int(kept[1][inside])

    def span(self, first: int, end: int) -> Integers:
        """Return the images at places first..end-1, as far as the epoch goes."""
        return self.images(np.arange(first, min(end, self.size), dtype=np.int64))


class EpochOrder:
    """The order of the images in every epoch of a training; the last one asked for is kept.

    Attributes:
        size: samples of an epoch.
        seed: of the run.
        purpose: names the draw.

    Args:
        images: how many, or with their weights and shards.
        kind: `global` = each epoch a permutation of all; `shards` = see `mst.data.order.shards`.

    Raises:
        UsageError: weights that are no whole numbers in the order by shards.
    """

    def __init__(
        self, images: int | ImageSource, seed: int, *, purpose: str = "order", kind: OrderKind = "global"
    ) -> None:
        self.seed, self.purpose = seed, purpose
        self._parts = Weighted([(images, 1.0)] if isinstance(images, int) else images.weights())
        self.size = self._parts.size
        self._shards: Integers | None = None
        if kind == "shards":
            source = images if not isinstance(images, int) else None
            self._shards = self._parts.shards(np.array([self.size]) if source is None else source.runs())
        self._kept: tuple[int, Tensor | ComputedOrder | None] = -1, None

    def of(self, epoch: int) -> Tensor | ComputedOrder:
        """Return the order of an epoch: int64 [size], or what acts like it."""
        number, order = self._kept
        if order is None or number != epoch:
            order = self._order(epoch)
            self._kept = epoch, order
        return order

    def image(self, place: int) -> int:
        """Return the image at a place of a training that goes through all images again and again, none left out."""
        epoch, position = divmod(place, self.size)
        return int(self.of(epoch)[position])

    def span(self, epoch: int, first: int, end: int) -> Integers:
        """Return the images at places first..end-1 of an epoch, as far as it goes."""
        order = self.of(epoch)
        if isinstance(order, ComputedOrder):
            return order.span(first, end)
        found: Integers = order[first:end].numpy()
        return found

    def _order(self, epoch: int) -> Tensor | ComputedOrder:
        samples: Callable[[Integers], Integers]
        if self._shards is not None:
            samples = ShardsOrder(self._shards, self.seed, epoch).of
        elif self.size > LISTED:
            samples = Permutation(self.size, self.seed, self.purpose, epoch).of
        else:
            listed = sample_order(self.seed, epoch, self.size, purpose=self.purpose)
            if self._parts.even:
                return listed
            samples = listed.numpy().__getitem__
        if self._parts.even:
            return ComputedOrder(self.size, samples)
        return ComputedOrder(self.size, lambda places: self._parts.images(samples(places), epoch, self.seed))


class Weighted:
    """From the samples of an epoch to images, where sources have weights.

    Attributes:
        size: samples of an epoch.
        even: whether all weights are 1: samples are images then.

    Args:
        parts: number of images and weight of each source.
    """

    def __init__(self, parts: Sequence[tuple[int, float]]) -> None:
        self.even = all(weight == 1 for _, weight in parts)
        self._weights = [weight for _, weight in parts]
        self._counts = np.array([count for count, _ in parts], dtype=np.int64)
        self._samples = np.array([max(1, round(count * weight)) for count, weight in parts], dtype=np.int64)
        self.size = int(self._samples.sum())
        self._ends = np.cumsum(self._samples)

    def images(self, samples: Integers, epoch: int, seed: int) -> Integers:
        """Return the images of samples: int64 [n]."""
        part = np.searchsorted(self._ends, samples, side="right")
        firsts = np.cumsum(self._counts) - self._counts
        count = epoch * self._samples[part] + samples - (self._ends - self._samples)[part]
        passes, inside = np.divmod(count, self._counts[part])
        for number, weight in enumerate(self._weights):
            if weight.is_integer():
                continue  # each epoch shows all of them equally often: nothing to choose
            for each in np.unique(passes[part == number]).tolist():
                chosen = np.flatnonzero((part == number) & (passes == each))
                inside[chosen] = _pass(int(self._counts[number]), seed, number, each)(inside[chosen])
        found: Integers = firsts[part] + inside
        return found

    def shards(self, ends: Integers) -> Integers:
        """Return where the shards of the samples end, given where those of the images do.

        Raises:
            UsageError: a weight that is no whole number.
        """
        if self.even:
            return ends
        found, first, start = [], 0, 0
        for count, weight in zip(self._counts.tolist(), self._weights, strict=True):
            if not weight.is_integer():
                raise UsageError(
                    f"a weight of {weight:g} with --data.order shards, which takes whole numbers: give another, or "
                    "use --data.order global"
                )
            own = ends[(ends > first) & (ends <= first + count)] - first
            for _ in range(int(weight)):
                found.append(own + start)
                start += count
            first += count
        return np.concatenate(found)


@lru_cache(maxsize=8)
def _pass(count: int, seed: int, part: int, number: int) -> Callable[[Integers], Integers]:
    """Return the order in which a source is gone through for the n-th time."""
    if count > LISTED:
        return Permutation(count, seed, "weighted-order", part, number).of
    listed: Integers = sample_order(seed, number, count, purpose=f"weighted-order-{part}").numpy()
    return listed.__getitem__


def epoch_samples(images: ImageSource) -> int:
    """Return the number of samples of an epoch: of images, with weights."""
    return Weighted(images.weights()).size
