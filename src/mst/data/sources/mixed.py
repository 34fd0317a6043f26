"""Several sources one after the other, each with a weight: how often an epoch of a pre-training shows its images."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path

import numpy as np
import numpy.typing as npt

from mst.data.files.passed import PassedOver
from mst.data.sources.protocol import ClassLabels, ImageSource
from mst.runtime.identity import DataIdentity, together


@dataclass(frozen=True, eq=False)
class MixedImages(ImageSource):
    """Images of several sources.

    Attributes:
        parts: the sources.
        given: weight of each; none = 1 each.
    """

    parts: Sequence[ImageSource]
    given: Sequence[float] = ()

    @classmethod
    def of(cls, parts: Sequence[ImageSource], weights: Sequence[float] = ()) -> ImageSource:
        """Return all images of the sources; of one source of weight 1, itself."""
        if all(weight == 1 for weight in weights):
            return parts[0] if len(parts) == 1 else cls(parts)
        return cls(parts, tuple(weights))

    @property
    def passed(self) -> PassedOver:
        """What the searches for the images met and did not take."""
        return PassedOver.of(entry for part in self.parts for entry in part.passed.entries)

    @property
    def sized(self) -> bool:
        """Whether the sizes of all sources are known."""
        return all(part.sized for part in self.parts)

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
        firsts = self._pieces(numbers)
        parts = [
            self.parts[numbers[first]].only(positions[first:last] - self._starts[numbers[first]])
            for first, last in zip(firsts, [*firsts[1:], len(positions)], strict=True)
        ]
        chosen = [self.given[numbers[first]] for first in self._pieces(numbers)] if self.given else ()
        return MixedImages(parts, chosen)

    def weights(self) -> Sequence[tuple[int, float]]:
        """Return the number of images of each part, and its weight."""
        given = self.given or [1.0] * len(self.parts)
        return [(len(part), weight) for part, weight in zip(self.parts, given, strict=True)]

    def runs(self) -> npt.NDArray[np.int64]:
        """Return the ends of the pieces of all sources."""
        return np.concatenate([part.runs() + start for part, start in zip(self.parts, self._starts, strict=True)])

    def expect(self, positions: npt.NDArray[np.int64]) -> None:
        """Prepare for images that are going to be read soon."""
        numbers = np.searchsorted(self._ends, positions, side="right")
        for number in dict.fromkeys(numbers.tolist()):
            self.parts[number].expect(positions[numbers == number] - self._starts[number])

    def labels(self) -> ClassLabels | None:
        """Return the classes that the sources know; None where one knows none."""
        found = [part.labels() for part in self.parts]
        known = [labels for labels in found if labels is not None]
        if len(known) < len(found):
            return None
        return ClassLabels.of([labels.classes[number] for labels in known for number in labels.numbers.tolist()])

    def files(self) -> Iterable[Path]:
        """Return the files of all sources."""
        return chain.from_iterable(part.files() for part in self.parts)

    def fingerprint(self, name: str = "") -> DataIdentity:
        """Return what these images are: what those of the sources are, one after the other."""
        return together(name, *(part.fingerprint() for part in self.parts))

    @staticmethod
    def _pieces(numbers: npt.NDArray[np.int64]) -> list[int]:
        """Return where another source begins, the beginning included."""
        return [0, *(np.flatnonzero(np.diff(numbers)) + 1).tolist()] if len(numbers) else []

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
