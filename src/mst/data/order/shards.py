"""An order for shards that are read best one after the other: shuffled shards, lanes, shuffled windows.

The shards are shuffled and laid end to end; the row is cut into `LANES` nearly equal lanes, and a sample is taken from
each in turn. Of the result each `WINDOW` samples are shuffled. So few shards are in use at any time, each is read once
from its first sample to its last, neighbours come from different shards, and the image at a place is a function of
(seed, epoch, place) alone.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import numpy.typing as npt
import torch

from mst.runtime.seeding import generator

LANES = 16
"""Shards in use at a time, about; fixed, so that neither processes nor workers change the order."""
WINDOW = 4096
"""Samples that are shuffled among themselves."""
Integers = npt.NDArray[np.int64]


class ShardsOrder:
    """The order of one epoch.

    Args:
        ends: where the shards end among the samples: ascending, the last is the number of samples.
        seed: of the run.
        epoch: from 0.
    """

    def __init__(self, ends: Integers, seed: int, epoch: int) -> None:
        self.size = int(ends[-1])
        starts = np.concatenate([np.zeros(1, np.int64), ends[:-1]])
        shuffled = torch.randperm(len(ends), generator=generator(seed, "shards-order", epoch)).numpy()
        self._starts = starts[shuffled]
        self._ends = np.cumsum((ends - starts)[shuffled])
        self._lanes = min(LANES, self.size)
        whole, rest = divmod(self.size, self._lanes)
        lanes = np.arange(self._lanes, dtype=np.int64)
        self._lane_starts = lanes * whole + np.minimum(lanes, rest)
        self._windows = lru_cache(maxsize=4)(lambda number: self._window(seed, epoch, number))

    def of(self, places: Integers) -> Integers:
        """Return the samples at these places: int64 [n]."""
        numbers = places // WINDOW
        found = np.empty_like(places)
        for number in dict.fromkeys(numbers.tolist()):
            inside = np.flatnonzero(numbers == number)
            found[inside] = number * WINDOW + self._windows(number)[places[inside] - number * WINDOW]
        laid = self._lane_starts[found % self._lanes] + found // self._lanes
        shard = np.searchsorted(self._ends, laid, side="right")
        before = np.concatenate([np.zeros(1, np.int64), self._ends])[shard]
        samples: Integers = self._starts[shard] + laid - before
        return samples

    def _window(self, seed: int, epoch: int, number: int) -> Integers:
        """Return the order inside a window; the last one may be shorter."""
        size = min(WINDOW, self.size - number * WINDOW)
        drawn: Integers = torch.randperm(size, generator=generator(seed, "window-order", epoch, number)).numpy()
        return drawn
