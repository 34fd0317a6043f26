"""A Feistel network with cycle walking, number by number, and its inverse (`mst.data.order.permutation`)."""

from __future__ import annotations

from mst.runtime.seeding import FIRST_FACTOR, SECOND_FACTOR, derive_seed

ALL = (1 << 64) - 1


def mixed(z: int) -> int:
    z = ((z ^ (z >> 30)) * FIRST_FACTOR) & ALL
    z = ((z ^ (z >> 27)) * SECOND_FACTOR) & ALL
    return z ^ (z >> 31)


class SlowPermutation:
    def __init__(self, size: int, *seed: int | str) -> None:
        self.size = size
        bits = max(2, (size - 1).bit_length())
        self.widths = [
            (bits - bits // 2, bits // 2) if number % 2 == 0 else (bits // 2, bits - bits // 2) for number in range(8)
        ]
        self.keys = [derive_seed(*seed, number) for number in range(8)]

    def forward(self, place: int) -> int:
        number = self._once(place)
        while number >= self.size:
            number = self._once(number)
        return number

    def backward(self, image: int) -> int:
        number = self._back(image)
        while number >= self.size:
            number = self._back(number)
        return number

    def _once(self, number: int) -> int:
        high, low = self.widths[0]
        left, right = number >> low, number % (1 << low)
        for key, (high, _) in zip(self.keys, self.widths, strict=True):
            left, right = right, left ^ (mixed((right + key) & ALL) >> (64 - high))
        return left << self.widths[0][1] | right

    def _back(self, number: int) -> int:
        _, low = self.widths[0]
        left, right = number >> low, number % (1 << low)
        for key, (high, _) in reversed(list(zip(self.keys, self.widths, strict=True))):
            left, right = right ^ (mixed((left + key) & ALL) >> (64 - high)), left
        return left << low | right
