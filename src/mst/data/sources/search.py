"""Finding images: folders at any depth, text files of paths, single files; sorted, quick and lean for millions."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import numpy.typing as npt

from mst.data.files.folders import FEWEST, Folder, cache_file, recall, remember, walk
from mst.data.files.kinds import ARRAY, BY_CONTENT, EXTENSIONS, extension, listed_names
from mst.data.files.lists import read_list
from mst.data.files.passed import Passed, PassedOver
from mst.data.sources.index import ImageIndex
from mst.data.sources.places import Source
from mst.errors import DataError, UsageError
from mst.paths import like_named, user_path
from mst.runtime.names import shown


class NoImages(DataError):
    """A folder without a single image."""


def index_images(
    paths: Source | Iterable[Source],
    *,
    limit: int | None = None,
    channels: int = 3,
    cache: Path | None = None,
    strict: bool = False,
    by_content: bool = False,
    tell: bool = True,
) -> ImageIndex:
    """Find the images under `paths`.

    A folder is searched at any depth in the order of its names (by bytes, so alike on every machine); names that begin
    with a dot and those of systems (`@eaDir`, `$RECYCLE.BIN`, `__MACOSX`, ...) are passed over; links are followed, but
    a folder reached a second time is not entered again. A text file holds one path per line, absolute or relative to
    the text file's own folder, in its own order, repeats included; empty lines and lines that begin with `#` are passed
    over, folders are searched. What below a source cannot be used (a folder of another user, a link that leads nowhere,
    a pipe) costs itself only: it is counted in the index's `passed`, and said once.

    Args:
        paths: folders, image files (`mst.data.files.kinds.EXTENSIONS`, any case) and text files of paths.
        limit: keep only this many, drawn evenly over the whole index.
        channels: of the images; where it is neither 1 nor 3, folders are searched for .npy files as well. Given by
            name, or in a text file, a .npy file is always taken.
        cache: where to remember what large folders hold, see `mst.data.files.folders`; None = search everything.
        strict: accept no trouble below the sources.
        by_content: open files with other extensions, or without, and take those that begin as an image does.
        tell: say on stderr what was passed over.

    Raises:
        UsageError: nothing was given, or a path does not exist, cannot be read or is none of the three.
        DataError: a folder without an image, an empty list, a list of files none of which exists, or (with `strict`)
            something that cannot be used.
    """
    sources = listed(paths)
    wanted = EXTENSIONS if channels in {1, 3} else EXTENSIONS | {ARRAY}
    search = _Search(wanted | {BY_CONTENT} if by_content else wanted, cache)
    for source in sources:
        search.add(source)
    index = search.index()
    if strict:
        index.passed.check()
    if tell:
        index.passed.tell()
    return index.evenly(limit)


def listed(paths: Source | Iterable[Source]) -> list[Source]:
    """Return the sources.

    Raises:
        UsageError: there is none.
    """
    sources = list(paths) if isinstance(paths, Iterable) and not isinstance(paths, str | bytes) else [paths]
    if not sources or any(source in ("", b"") for source in sources):
        raise UsageError("no images given: name folders, image files or text files of paths")
    return sources


class _Search:
    """Collects the images of one source after the other; a folder that two of them reach counts once."""

    def __init__(self, wanted: frozenset[bytes], cache: Path | None) -> None:
        self._wanted, self._cache = wanted, cache
        self._visited: set[tuple[int, int]] = set()
        self._blocks: list[bytes] = []
        self._lengths: list[npt.NDArray[np.int64]] = [np.zeros(0, np.int64)]
        self._passed: list[Passed] = []

    def index(self) -> ImageIndex:
        """Return all that was found."""
        ends = np.concatenate([np.zeros(1, np.int64), np.concatenate(self._lengths).cumsum()])
        return ImageIndex(b"".join(self._blocks), ends, PassedOver.of(self._passed))

    def add(self, source: Source) -> None:
        """Add what a source names."""
        path, mode = looked_up(source)
        if stat.S_ISDIR(mode):
            self._add_folder(os.fsencode(path))
        elif not stat.S_ISREG(mode):
            raise UsageError(f"{shown(path)} is a pipe, a socket or a device: give a folder, an image or a list file")
        elif extension(os.fsencode(path.name)) in EXTENSIONS | {ARRAY}:
            self._add_files([os.fsencode(path)])
        else:
            self._add_list(path)

    def _add_files(self, paths: list[bytes]) -> None:
        self._blocks.append(b"".join(paths))
        self._lengths.append(np.fromiter(map(len, paths), dtype=np.int64, count=len(paths)))

    def _add_list(self, path: Path) -> None:
        """Add the files of a list, and what is in its folders."""
        listed = read_list(path)
        self._passed += listed.passed
        start = 0
        for place in sorted(listed.folders):
            self._add_files(listed.paths[start:place])
            self._add_folder(listed.paths[place])
            start = place + 1
        self._add_files(listed.paths[start:])

    def _add_folder(self, top: bytes) -> None:
        """Add the images in a folder and below."""
        already = len(self._visited)
        file = cache_file(self._cache, top, self._wanted) if self._cache is not None else None
        known = recall(file) if file is not None else {}
        folders = list(walk(top, self._visited, self._wanted, known))
        count = sum(len(folder.lengths) for folder in folders)
        if not count and len(self._visited) > already:
            raise NoImages(_nothing(top, folders, self._wanted))
        changed = len(folders) != len(known) or any(known.get(folder.path) is not folder for folder in folders)
        if file is not None and changed and count >= FEWEST:
            remember(file, folders)
        self._blocks += (folder.block for folder in folders)
        self._lengths += (folder.lengths for folder in folders)
        self._passed += (entry for folder in folders for entry in folder.passed)


def looked_up(source: Source) -> tuple[Path, int]:
    """Return the absolute path of a source, and its mode.

    Raises:
        UsageError: it does not exist or cannot be reached.
    """
    path = Path(os.path.abspath(user_path(source)))
    try:
        return path, os.stat(path).st_mode
    except FileNotFoundError:
        dead = ": it is a link that leads nowhere" if path.is_symlink() else ""
        raise UsageError(
            f"{shown(path)} does not exist{like_named(path)}{dead}: "
            "give a folder of images, an image or a text file of paths"
        ) from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise UsageError(f"{shown(path)} cannot be read: {reason}") from error


def _nothing(top: bytes, folders: list[Folder], wanted: frozenset[bytes]) -> str:
    """Return in one line that there are no images, and what there is."""
    passed = PassedOver.of(entry for folder in folders for entry in folder.passed)
    found = [*map(str, passed.troubles), *([passed.others()] if passed.others() else [])]
    if any(entry.reason == ARRAY.decode() for entry in passed.entries) and ARRAY not in wanted:
        found.append("arrays are searched for with --data.channels (of inspect: --channels) other than 1 and 3 only")
    there = f"; found: {'; '.join(found)}" if found else ""
    return f"{shown(top)} holds no images: looked at any depth for {listed_names(wanted)}{there}"
