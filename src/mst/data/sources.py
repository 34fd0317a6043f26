"""Finding images: folders at any depth, text files of paths, single files; sorted, quick and lean for millions."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import accumulate, pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt

from mst.data.folders import FEWEST, cache_file, extension, recall, remember, walk
from mst.errors import DataError, UsageError
from mst.runtime.identity import DataIdentity, identify, sample_positions

EXTENSIONS = frozenset({b"jpg", b"jpeg", b"png", b"webp", b"tif", b"tiff", b"bmp"})
ARRAY = b"npy"
"""Searched for only where images are neither grey nor RGB: beside photographs such files hold masks or features."""


@dataclass(frozen=True, eq=False)
class ImageIndex:
    """Absolute paths of images: read-only, held as one block of bytes.

    Attributes:
        block: the paths, one after the other, in the file system's encoding.
        ends: where each path ends in `block`: int64 [len + 1], the first is 0.
    """

    block: bytes
    ends: npt.NDArray[np.int64]

    @classmethod
    def of(cls, paths: Iterable[bytes | str | Path]) -> ImageIndex:
        """Hold the given paths in the given order."""
        encoded = [os.fsencode(path) for path in paths]
        return cls(b"".join(encoded), np.fromiter(accumulate(map(len, encoded), initial=0), dtype=np.int64))

    def __len__(self) -> int:
        return len(self.ends) - 1

    def __getitem__(self, position: int) -> Path:
        if not 0 <= position < len(self):
            raise IndexError(f"image {position} of {len(self)}")
        return Path(os.fsdecode(self.block[self.ends[position] : self.ends[position + 1]]))

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

    def evenly(self, limit: int | None) -> ImageIndex:
        """Return at most `limit` of the images, at even distances, order kept; None = all."""
        if limit is None or limit >= len(self):
            return self
        return ImageIndex.of(self[int(i)] for i in even_positions(len(self), limit))


def even_positions(size: int, limit: int) -> npt.NDArray[np.int64]:
    """Return min(size, limit) positions in 0..size-1 at even distances, ascending."""
    count = min(size, limit)
    return np.arange(count, dtype=np.int64) * size // max(count, 1)


def index_images(
    paths: str | Path | Iterable[str | Path],
    *,
    limit: int | None = None,
    channels: int = 3,
    cache: Path | None = None,
) -> ImageIndex:
    """Find the images under `paths`.

    A folder is searched at any depth in the order of its names (by bytes, so alike on every machine); names that begin
    with a dot are passed over; links are followed, but a folder reached a second time is not entered again. A text
    file holds one path per line, absolute or relative to the text file's own folder, in its own order, repeats
    included; empty lines and lines that begin with `#` are passed over. Files are not opened here.

    Args:
        paths: folders, image files (jpg, jpeg, png, webp, tif, tiff, bmp; any case) and text files of paths.
        limit: keep only this many, drawn evenly over the whole index.
        channels: of the images; where it is neither 1 nor 3, folders are searched for .npy files as well. Given by
            name, or in a text file, a .npy file is always taken.
        cache: where to remember what large folders hold, see `mst.data.folders`; None = search everything.

    Raises:
        UsageError: nothing was given, or a path does not exist, cannot be read or is none of the three.
        DataError: a folder without an image, an empty list, or a list whose first path is no file.
    """
    sources = [paths] if isinstance(paths, str | Path) else list(paths)
    if not sources or "" in sources:
        raise UsageError("no images given: name folders, image files or text files of paths")
    visited: set[tuple[int, int]] = set()
    wanted = EXTENSIONS if channels in {1, 3} else EXTENSIONS | {ARRAY}
    parts = [_images_of(Path(os.path.abspath(Path(source).expanduser())), visited, wanted, cache) for source in sources]
    lengths = np.concatenate([lengths for _, lengths in parts])
    ends = np.concatenate([np.zeros(1, np.int64), lengths.cumsum()])
    return ImageIndex(b"".join(block for block, _ in parts), ends).evenly(limit)


Paths = tuple[bytes, npt.NDArray[np.int64]]
"""Encoded absolute paths, one after the other, and the length of each."""


def _images_of(source: Path, visited: set[tuple[int, int]], wanted: frozenset[bytes], cache: Path | None) -> Paths:
    """Return the images that one source names."""
    if source.is_dir():
        return _images_below(source, visited, wanted, cache)
    if not source.exists():
        raise UsageError(f"{source} does not exist: give a folder of images, an image or a text file of paths")
    named = extension(os.fsencode(source.name)) in EXTENSIONS | {ARRAY}
    found = [os.fsencode(source)] if named else _read_list(source)
    return b"".join(found), np.array([len(path) for path in found], dtype=np.int64)


def _images_below(source: Path, visited: set[tuple[int, int]], wanted: frozenset[bytes], cache: Path | None) -> Paths:
    """Return the images in a folder and below."""
    top, already = os.fsencode(source), len(visited)
    file = cache_file(cache, top, wanted) if cache is not None else None
    known = recall(file) if file is not None else {}
    folders = list(walk(top, visited, wanted, known))
    lengths = np.concatenate([np.zeros(0, np.int64), *(folder.lengths for folder in folders)])
    if not len(lengths) and len(visited) > already:
        raise DataError(f"{source} holds no images: looked at any depth for {_names(wanted)}")
    changed = len(folders) != len(known) or any(known.get(folder.path) is not folder for folder in folders)
    if file is not None and changed and len(lengths) >= FEWEST:
        remember(file, folders)
    return b"".join(folder.block for folder in folders), lengths


def _read_list(source: Path) -> list[bytes]:
    """Return the paths that a text file lists."""
    try:
        content = source.read_bytes()
    except OSError as error:
        raise UsageError(f"{source} cannot be read: {error.strerror}") from error
    if b"\0" in content:
        raise UsageError(
            f"{source} is neither a folder, nor an image ({_names(EXTENSIONS | {ARRAY})}), nor a text file of paths"
        )
    lines = [line.strip() for line in content.removeprefix(b"\xef\xbb\xbf").splitlines()]
    base = os.fsencode(source.parent)
    found = [os.path.normpath(os.path.join(base, line)) for line in lines if line and not line.startswith(b"#")]
    if not found:
        raise DataError(f"{source} lists no paths: one image path per line is expected")
    if not os.path.isfile(found[0]):
        raise DataError(
            f"{source}: its first path is no file: {os.fsdecode(found[0])} (paths are relative to the list's folder)"
        )
    return found


def _names(extensions: frozenset[bytes]) -> str:
    return ", ".join(sorted(extension.decode() for extension in extensions))
