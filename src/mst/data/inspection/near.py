"""Images that show nearly the same: found by hashes that agree in most bits, then compared as small pictures.

Finding: 64 bits are cut into `BANDS` parts. Two hashes that differ in at most `RADIUS` = `BANDS` - 2 bits agree in two
whole parts at least, so that sorting by each pair of parts brings them together (multi-index hashing: M. Norouzi,
A. Punjani, D. Fleet, Fast Search in Hamming Space with Multi-Index Hashing, CVPR 2012). Each is compared with the next
`WINDOW` in each order only: the time is bounded by the number of images, whatever they show.

Comparing: brightness and contrast are taken out; then the small pictures must agree as a whole and in each part, and in
their colours where both have some. The limits are measured, see docs/inspect.md.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise

import numpy as np
import numpy.typing as npt

from mst.data.inspection.signature import BITS, GREY, SIDE, Hashes, Signatures, hashes

RADIUS = 6
"""Bits in which the hashes of two images that show the same may differ."""
BANDS = RADIUS + 2
WINDOW = 64
"""Images after it, in each order, that one is compared with."""
CORRELATION = 0.985
"""Least correlation of the grey values of two small pictures."""
APART = 0.35
"""Most difference of a part (4 x 4 of 32 x 32 pixels), in standard deviations of the picture."""
COLOURS_APART = 18
"""Most difference of the colours of a part, in levels."""
COLOURLESS = 4
"""Levels of colour up to which a picture counts as grey."""
MOST_CONFIRMED = 300_000
"""Pairs that are looked at again: the rest is left out, and that is said."""
_AT_ONCE = 1 << 12
_COUNTS = np.array([bin(number).count("1") for number in range(1 << 16)], np.uint8)

Positions = npt.NDArray[np.int64]
Confirm = Callable[[Sequence[int], Sequence[int]], list[bool]]


@dataclass(frozen=True)
class NearImages:
    """Groups of images that show nearly the same.

    Attributes:
        groups: positions in each, ascending; the groups by their first.
        cut: whether more images were alike than are compared, so that some may be missing.
    """

    groups: list[list[int]]
    cut: bool


def near_images(signatures: Signatures, positions: Positions, confirm: Confirm | None = None) -> NearImages:
    """Return the groups of two and more, linked by pairs that show nearly the same.

    Args:
        signatures: of all images, uint8 [N, LENGTH]; it may be mapped from a file.
        positions: of those that count, ascending.
        confirm: says of pairs of positions that are alike when small whether they show the same; None = they do.
    """
    found = np.concatenate(
        [np.zeros(0, np.uint64)]
        + [hashes(np.asarray(signatures[positions[at : at + _AT_ONCE]])) for at in range(0, len(positions), _AT_ONCE)]
    )
    search = _Search(signatures, positions, found, confirm)
    cut = sum(search.link(mask) for mask in _masks()) > 0
    roots = search.sets.roots()
    together: dict[int, list[int]] = {}
    for place in np.flatnonzero(np.bincount(roots, minlength=len(found))[roots] > 1).tolist():
        together.setdefault(int(roots[place]), []).append(int(positions[place]))
    return NearImages(list(together.values()), cut or search.room <= 0)


def alike(one: Signatures, other: Signatures) -> npt.NDArray[np.bool_]:
    """Return which pairs show nearly the same: uint8 [n, LENGTH] each -> [n]."""
    a, b = _normalised(one), _normalised(other)  # [n, S, S]
    correlation = (a * b).mean((1, 2))
    parts = (a - b).reshape(len(a), SIDE // 4, 4, SIDE // 4, 4).mean((2, 4))
    apart = np.abs(parts).max((1, 2))
    first, second = (part[:, GREY:].astype(np.int16) - 128 for part in (one, other))
    colours = np.abs(first - second).max(1)
    grey = (np.abs(first).max(1) <= COLOURLESS) | (np.abs(second).max(1) <= COLOURLESS)
    same: npt.NDArray[np.bool_] = (correlation >= CORRELATION) & (apart <= APART) & (grey | (colours <= COLOURS_APART))
    return same


def distance(one: Hashes, other: Hashes) -> npt.NDArray[np.int64]:
    """Return in how many bits hashes differ: uint64 [n] each -> [n]."""
    differing = np.ascontiguousarray(one ^ other).view(np.uint16).reshape(-1, 4)
    counted: npt.NDArray[np.int64] = _COUNTS[differing].sum(1, dtype=np.int64)
    return counted


def _normalised(signatures: Signatures) -> npt.NDArray[np.float32]:
    """Return the grey values with mean 0 and standard deviation 1: [n, S, S]."""
    grey = signatures[:, :GREY].astype(np.float32).reshape(-1, SIDE, SIDE)
    grey = grey - grey.mean((1, 2), keepdims=True)
    normalised: npt.NDArray[np.float32] = grey / np.maximum(grey.std((1, 2), keepdims=True), 1e-3)
    return normalised


def _masks() -> list[np.uint64]:
    """Return the bits of each pair of parts."""
    ends = [BITS * band // BANDS for band in range(BANDS + 1)]
    parts = [((1 << last) - 1) ^ ((1 << first) - 1) for first, last in pairwise(ends)]
    return [np.uint64(one | other) for one, other in combinations(parts, 2)]


class _Search:
    """Links images that show nearly the same; see `near_images`."""

    def __init__(self, signatures: Signatures, positions: Positions, found: Hashes, confirm: Confirm | None) -> None:
        self.sets = _Sets(len(found))
        self.room = MOST_CONFIRMED
        self._signatures, self._positions, self._found, self._confirm = signatures, positions, found, confirm
        self._different: set[tuple[int, int]] = set()

    def link(self, mask: np.uint64) -> bool:
        """Link images that agree in the bits of a mask and show nearly the same; return whether some were left out."""
        found, sets = self._found, self.sets
        keys = found & mask
        order = np.lexsort((found, keys))
        keys = keys[order]
        for step in range(1, min(WINDOW, len(order) - 1) + 1):
            same = np.flatnonzero(keys[step:] == keys[:-step])
            if not len(same):
                return False
            one, other = order[same], order[same + step]
            close = distance(found[one], found[other]) <= RADIUS
            one, other = one[close], other[close]
            roots = sets.roots()
            apart = roots[one] != roots[other]
            one, other = one[apart], other[apart]
            for at in range(0, len(one), _AT_ONCE):
                sets.join(*self._alike(one[at : at + _AT_ONCE], other[at : at + _AT_ONCE]))
        return len(order) > WINDOW + 1 and bool((keys[WINDOW + 1 :] == keys[: -WINDOW - 1]).any())

    def _alike(self, one: Positions, other: Positions) -> tuple[list[int], list[int]]:
        """Return those of some pairs that show nearly the same."""
        left, right = self._positions[one], self._positions[other]
        linked = alike(np.asarray(self._signatures[left]), np.asarray(self._signatures[right]))
        if self._confirm is not None:
            linked[linked] = self._confirmed(left[linked].tolist(), right[linked].tolist())
        return one[linked].tolist(), other[linked].tolist()

    def _confirmed(self, ones: list[int], others: list[int]) -> list[bool]:
        """Ask about pairs that were not asked about before, as long as there is room."""
        pairs = [(min(pair), max(pair)) for pair in zip(ones, others, strict=True)]
        asked = [pair for pair in dict.fromkeys(pairs) if pair not in self._different][: max(0, self.room)]
        self.room -= len(asked)
        answers = self._confirm([one for one, _ in asked], [other for _, other in asked]) if self._confirm else []
        sure = {pair for pair, answer in zip(asked, answers, strict=True) if answer}
        self._different.update(pair for pair in asked if pair not in sure)
        return [pair in sure for pair in pairs]


class _Sets:
    """Disjoint sets of 0..n-1 that are joined; the smallest member stands for its set."""

    def __init__(self, count: int) -> None:
        self._above = np.arange(count, dtype=np.int64)

    def roots(self) -> Positions:
        """Return the member that stands for the set of each."""
        while True:
            higher = self._above[self._above]
            if np.array_equal(higher, self._above):
                return self._above
            self._above = higher

    def join(self, ones: list[int], others: list[int]) -> None:
        """Join the sets of pairs."""
        above = self._above
        for one, other in zip(ones, others, strict=True):
            first, second = self._root(one), self._root(other)
            above[max(first, second)] = min(first, second)

    def _root(self, member: int) -> int:
        while self._above[member] != member:
            member = int(self._above[member])
        return member
