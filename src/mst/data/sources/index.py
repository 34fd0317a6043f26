"""Image files by position: millions of absolute paths, lean in memory."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt

from mst.data.files.kinds import beginning
from mst.data.files.passed import NOTHING, PassedOver
from mst.data.sources.protocol import ImageSource
from mst.runtime.identity import DataIdentity, identify, sample_positions
from mst.runtime.images import read_regular


@dataclass(frozen=True, eq=False)
class ImageIndex(ImageSource):
    """Absolute paths of images: read-only, held as one block of bytes.

    Attributes:
        block: the paths, one after the other, in the file system's encoding.
        ends: where each path ends in `block`: int64 [len + 1], the first is 0.
        passed: what the search met and did not take.
    """

    block: bytes
    ends: npt.NDArray[np.int64]
    passed: PassedOver = NOTHING

    @classmethod
    def of(cls, paths: Iterable[bytes | str | Path]) -> ImageIndex:
        """Hold the given paths in the given order."""
        encoded = [os.fsencode(path) for path in paths]
        return cls(b"".join(encoded), np.fromiter(accumulate(map(len, encoded), initial=0), dtype=np.int64))

    @classmethod
    def joined(cls, parts: Sequence[ImageIndex]) -> ImageIndex:
        """Hold the images of several one after the other."""
        lengths = [np.diff(part.ends) for part in parts]
        ends = np.concatenate([np.zeros(1, np.int64), np.concatenate([np.zeros(0, np.int64), *lengths]).cumsum()])
        passed = PassedOver.of(entry for part in parts for entry in part.passed.entries)
        return cls(b"".join(part.block for part in parts), ends, passed)

    def __len__(self) -> int:
        return len(self.ends) - 1

    def __getitem__(self, position: int) -> Path:
        return Path(self.name(position))

    def __iter__(self) -> Iterator[Path]:
        return (self[position] for position in range(len(self)))

    def fingerprint(self, name: str = "") -> DataIdentity:
        """Return what these images are, see `mst.runtime.identity`: the same for a copy in another folder.

        A million names are read one after the other; of 1,024 files the sizes count, of 128 the contents.

        Args:
            name: what the identity calls the set, such as the folder that it was found in.
        """
        start = self._shared()
        names = (self.block[first + start : last] for first, last in pairwise(self.ends.tolist()))
        files = [self[position] for position in sample_positions(len(self))]
        return identify(name, names, count=len(self), files=files)

    def _shared(self) -> int:
        """Return the length of the folder's path that all paths begin with, its last slash included."""
        if not len(self):
            return 0
        block, starts = np.frombuffer(self.block, dtype=np.uint8), self.ends[:-1]
        folder = self.block[: self.block.rfind(b"/", 0, int(self.ends[1])) + 1]
        most = min(len(folder), int(np.diff(self.ends).min()))
        same = next((place for place in range(most) if (block[starts + place] != folder[place]).any()), most)
        return folder.rfind(b"/", 0, same) + 1

    def only(self, positions: npt.NDArray[np.int64]) -> ImageIndex:
        """Return the images at these positions, in this order."""
        return replace(ImageIndex.of(self[position] for position in positions.tolist()), passed=self.passed)

    def name(self, position: int) -> str:
        """Return the path of an image."""
        return os.fsdecode(self._path(position))

    def size(self, position: int) -> int:
        """Return the size of a file."""
        return os.stat(self._path(position)).st_size

    def read_bytes(self, position: int, most: int | None = None) -> bytearray:
        """Return the content of a file; a pipe is not waited for.

        Raises:
            OSError: it cannot be read.
        """
        path = self._path(position)
        return read_regular(path) if most is None else bytearray(beginning(path, most))

    def files(self) -> Iterable[Path]:
        """Return the files."""
        return self

    def _path(self, position: int) -> bytes:
        if not 0 <= position < len(self):
            raise IndexError(f"image {position} of {len(self)}")
        return self.block[self.ends[position] : self.ends[position + 1]]
