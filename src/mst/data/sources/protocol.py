"""What every source of images gives: a number of them, and for each position a name and its encoded bytes.

Order, read-ahead, memory and the count of unreadable images are nobody's but the loader's (`mst.data.loader`,
`mst.data.background`), so that they are the same for all sources; labels and annotations go by position or by name.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, Self

import numpy as np
import numpy.typing as npt

from mst.data.files.passed import PassedOver
from mst.runtime.identity import MOST_READ, PIECE, DataIdentity, identify, sample_positions

RUN = 1024
"""Images of a source without shards that lie together, as the `shards` order reads them."""


class ClassLabels(NamedTuple):
    """The classes of images.

    Attributes:
        classes: their names, in the order of their numbers.
        numbers: of the images: int64 [n].
    """

    classes: tuple[str, ...]
    numbers: npt.NDArray[np.int64]

    @classmethod
    def of(cls, names: Sequence[str]) -> ClassLabels:
        """Number classes by name: whole numbers by value, others by bytes."""
        found = set(names)
        key = (lambda name: (int(name), name)) if all(map(_is_number, found)) else None
        classes = sorted(found, key=key)
        number = {name: place for place, name in enumerate(classes)}
        return cls(tuple(classes), np.fromiter((number[name] for name in names), np.int64, len(names)))

    def numbered_as(self, classes: Sequence[str]) -> ClassLabels:
        """Return the same classes under the numbers that they have among others; all that are used must be there."""
        number = {name: place for place, name in enumerate(classes)}
        table = np.array([number.get(name, -1) for name in self.classes], dtype=np.int64)
        return ClassLabels(tuple(classes), table[self.numbers])


def _is_number(name: str) -> bool:
    return name.isascii() and name.isdigit() and len(name) < 19


class ImageSource(Protocol):
    """Images by position. It is copied into worker processes, and read by several threads at once."""

    @property
    def passed(self) -> PassedOver:
        """What the search for the images met and did not take."""

    @property
    def sized(self) -> bool:
        """Whether `size` is known without reading much more than the image."""
        return True

    def __len__(self) -> int: ...

    def name(self, position: int) -> str:
        """Return what messages and lists call an image: its path, or where it lies in a larger file."""

    def size(self, position: int) -> int:
        """Return the number of an image's bytes.

        Raises:
            OSError: it cannot be found out.
        """

    def read_bytes(self, position: int, most: int | None = None) -> bytearray:
        """Return an image's bytes in any format that `mst.data.decoding` knows; with `most`, at least the first ones.

        Raises:
            OSError: they cannot be read.
        """

    def only(self, positions: npt.NDArray[np.int64]) -> Self:
        """Return the images at these positions, in this order."""

    def evenly(self, limit: int | None) -> Self:
        """Return at most `limit` of the images, at even distances, order kept; None = all."""
        return self if limit is None or limit >= len(self) else self.only(even_positions(len(self), limit))

    def files(self) -> Iterable[Path]:
        """Return the files that the images are read from, in any order."""

    def fingerprint(self, name: str = "") -> DataIdentity:
        """Return what these images are, see `mst.runtime.identity`: the same for a copy in another place.

        Args:
            name: what the identity calls the set, such as the folder that it was found in.
        """

    def weights(self) -> Sequence[tuple[int, float]]:
        """Return how many images each part has, and how often an epoch of a pre-training shows them."""
        return [(len(self), 1.0)]

    def runs(self) -> npt.NDArray[np.int64]:
        """Return the ends of the pieces that are read best one after the other (shards): ascending, the last is n."""
        return np.append(np.arange(RUN, len(self), RUN, dtype=np.int64), len(self))

    def expect(self, positions: npt.NDArray[np.int64]) -> None:
        """Prepare for images that are going to be read soon, in this order; most sources need not."""
        return

    def labels(self) -> ClassLabels | None:
        """Return the classes that the source itself knows; None = it knows none.

        Raises:
            DataError: of some images only.
        """
        return None


def even_positions(size: int, limit: int) -> npt.NDArray[np.int64]:
    """Return min(size, limit) positions in 0..size-1 at even distances, ascending."""
    count = min(size, limit)
    return np.arange(count, dtype=np.int64) * size // max(count, 1)


def ends_of_runs(numbers: npt.NDArray[np.integer[Any]]) -> npt.NDArray[np.int64]:
    """Return where each run of equal numbers ends."""
    return np.append(np.flatnonzero(np.diff(numbers)) + 1, len(numbers)).astype(np.int64)


def identity_of_bytes(source: ImageSource, name: str, names: Iterable[bytes]) -> DataIdentity:
    """Return the identity of images that are no files of their own: an even sample is read."""

    def contents() -> Iterator[bytes]:
        for position in sample_positions(len(source), MOST_READ):
            try:
                data = source.read_bytes(position)
            except OSError:
                yield b"unreadable"
            else:
                yield b"%d " % len(data) + data[:PIECE] + data[PIECE:][-PIECE:]

    return identify(name, names, count=len(source), contents=contents())


def within(source: ImageSource, folder: Path) -> Path | None:
    """Return the first file of a source that lies in a folder, links followed; None = none does."""
    root = os.path.realpath(folder)
    return next((path for path in source.files() if Path(os.path.realpath(path)).is_relative_to(root)), None)
