"""Several sources one after the other."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path

import numpy as np
import numpy.typing as npt

from mst.data.files.passed import PassedOver
from mst.data.sources.protocol import ImageSource
from mst.runtime.identity import DataIdentity, together


@dataclass(frozen=True, eq=False)
class MixedImages(ImageSource):
    """Images of several sources.

    Attributes:
        parts: the sources.
    """

    parts: Sequence[ImageSource]

    @classmethod
    def of(cls, parts: Sequence[ImageSource]) -> ImageSource:
        """Return all images of the sources; of one source, itself."""
        return parts[0] if len(parts) == 1 else cls(parts)

    @property
    def passed(self) -> PassedOver:
        """What the searches for the images met and did not take."""
        return PassedOver.of(entry for part in self.parts for entry in part.passed.entries)

    def __len__(self) -> int:
        return int(self._ends[-1])

    def name(self, position: int) -> str:
        """Return what the image's source calls it."""
        part, place = self._place(position)
        return part.name(place)

    def size(self, position: int) -> int:
        """Return the number of an image's bytes."""
        part, place = self._place(position)
        return part.size(place)

    def read_bytes(self, position: int, most: int | None = None) -> bytearray:
        """Return an image's bytes."""
        part, place = self._place(position)
        return part.read_bytes(place, most)

    def only(self, positions: npt.NDArray[np.int64]) -> MixedImages:
        """Return the images at these positions, in this order."""
        numbers = np.searchsorted(self._ends, positions, side="right")
        cuts = np.flatnonzero(np.diff(numbers)) + 1  # where another source begins
        parts = [
            self.parts[numbers[first]].only(positions[first:last] - self._starts[numbers[first]])
            for first, last in zip([0, *cuts], [*cuts, len(positions)], strict=True)
            if last > first
        ]
        return MixedImages(parts)

    def files(self) -> Iterable[Path]:
        """Return the files of all sources."""
        return chain.from_iterable(part.files() for part in self.parts)

    def fingerprint(self, name: str = "") -> DataIdentity:
        """Return what these images are: what those of the sources are, one after the other."""
        return together(name, *(part.fingerprint() for part in self.parts))

    @cached_property
    def _ends(self) -> npt.NDArray[np.int64]:
        return np.cumsum([0, *map(len, self.parts)], dtype=np.int64)[1:]

    @cached_property
    def _starts(self) -> npt.NDArray[np.int64]:
        return self._ends - np.array([len(part) for part in self.parts], dtype=np.int64)

    def _place(self, position: int) -> tuple[ImageSource, int]:
        """Return the source of an image, and its position there."""
        if not 0 <= position < len(self):
            raise IndexError(f"image {position} of {len(self)}")
        number = int(np.searchsorted(self._ends, position, side="right"))
        return self.parts[number], position - int(self._starts[number])
