"""A permutation of any size that is computed place by place, in constant memory.

A Feistel network permutes the numbers of so many bits; what falls outside the size is put through it again until it
falls inside (cycle walking; Black and Rogaway 2002, "Ciphers with arbitrary finite domains", section 3). Its round
function is the last step of SplitMix64 (Steele, Lea and Flood 2014).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from mst.runtime.seeding import FIRST_FACTOR, SECOND_FACTOR, derive_seed

ROUNDS = 8
"""An even number, so that both parts end where they began."""
Integers = npt.NDArray[np.int64]


class Permutation:
    """A permutation of 0..size-1, drawn by the parts of its seed.

    Attributes:
        size: numbers; at least 1.
    """

    def __init__(self, size: int, *seed: int | str) -> None:
        self.size = size
        bits = max(2, (size - 1).bit_length())
        self._low = bits // 2
        self._high = bits - self._low
        self._keys = [np.uint64(derive_seed(*seed, number)) for number in range(ROUNDS)]

    def of(self, places: Integers) -> Integers:
        """Return where places go: int64 of the shape [n] of `places`."""
        found = self._once(places.astype(np.uint64))
        while len(outside := np.flatnonzero(found >= self.size)):
            found[outside] = self._once(found[outside])
        return found.astype(np.int64)

    def _once(self, numbers: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
        """Permute the numbers of all bits."""
        high, low = self._high, self._low
        left, right = numbers >> np.uint64(low), numbers & np.uint64((1 << low) - 1)
        for key in self._keys:
            left, right = right, left ^ (_mixed(right + key) >> np.uint64(64 - high))
            high, low = low, high
        return left << np.uint64(low) | right


def _mixed(z: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Mix all bits, modulo 2^64."""
    z = (z ^ (z >> np.uint64(30))) * np.uint64(FIRST_FACTOR)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(SECOND_FACTOR)
    return z ^ (z >> np.uint64(31))
