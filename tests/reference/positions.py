"""Sines and cosines of rows and columns, number by number. Source: Vaswani et al. 2017, section 3.5."""

from __future__ import annotations

import math


def position_values(row: int, column: int, width: int) -> list[float]:
    """Return the `width` numbers of a patch: sines of row and column, then cosines, each by falling frequency."""
    count = width // 4
    frequencies = [10000.0 ** (-number / count) for number in range(count)]
    angles = [place * frequency for place in (row, column) for frequency in frequencies]
    return [math.sin(angle) for angle in angles] + [math.cos(angle) for angle in angles]
