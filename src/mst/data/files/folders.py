"""Walking folders of images, and remembering what each held, so that a folder that did not change is not read again.

What is remembered of a folder counts only while its device, inode and time of last change (in nanoseconds) are the
same: a file that is added, removed or renamed changes that time. Folders that hold links, whose targets may change
without a trace, and folders that changed seconds before they were read are always read again.
"""

from __future__ import annotations

import errno
import hashlib
import heapq
import io
import json
import os
import stat
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from mst.data.files.kinds import BY_CONTENT, SYSTEM, beginning, begins_as_image, extension
from mst.data.files.passed import FIRST, Kind, Passed
from mst.errors import RunFailure, UsageError
from mst.runtime.names import shown
from mst.runtime.storage.files import write_atomic

FRESH = 3 * 10**9
"""Nanoseconds in which a folder may change once more without another time: file systems count in up to 2 seconds."""
UNSURE = -1
"""In place of a time: to be read again."""
FEWEST = 10_000
"""Images from which a folder is worth remembering; fewer are found in no time."""
FORMAT = 2
LONGEST = 4095
"""Bytes of a path that the system opens."""


@dataclass(frozen=True, eq=False)
class Folder:
    """What one folder holds, without what its sub-folders hold.

    Attributes:
        path: absolute, in the file system's encoding.
        status: device, inode and time of last change, or `UNSURE`.
        block: the paths of its images, by name, one after the other.
        lengths: of each of them in bytes, int64.
        folders: the paths of its sub-folders, by name.
        passed: what it holds beside them.
    """

    path: bytes
    status: tuple[int, int, int]
    block: bytes
    lengths: npt.NDArray[np.int64]
    folders: tuple[bytes, ...]
    passed: tuple[Passed, ...] = ()


def walk(
    top: bytes, visited: set[tuple[int, int]], wanted: frozenset[bytes], known: Mapping[bytes, Folder]
) -> Iterator[Folder]:
    """Yield a folder and all below: a folder first, then its sub-folders, by name.

    A sub-folder that cannot be searched is yielded without content, and says so in `passed`.

    Args:
        top: where to begin.
        visited: device and inode of the folders that were met already and are passed over; added to.
        wanted: extensions of images, lower case, and perhaps `BY_CONTENT`.
        known: folders as they once were, by path.

    Raises:
        UsageError: the first folder cannot be read.
    """
    waiting = [top]
    while waiting:
        path = waiting.pop()
        try:
            found = os.stat(path)
            if (found.st_dev, found.st_ino) in visited:
                continue
            folder = known.get(path)
            if folder is None or folder.status != (found.st_dev, found.st_ino, found.st_mtime_ns):
                folder = _read(path, found, wanted)
            visited.add((found.st_dev, found.st_ino))
        except OSError as error:
            if path == top:
                raise UsageError(f"{shown(path)} cannot be searched: {error.strerror}") from error
            trouble = Passed("folder", error.strerror or "unknown", 1, (path,))
            folder = Folder(path, (0, 0, UNSURE), b"", np.zeros(0, np.int64), (), (trouble,))
        yield folder
        waiting.extend(reversed(folder.folders))


def _read(path: bytes, found: os.stat_result, wanted: frozenset[bytes]) -> Folder:
    """Read one folder; `found` was asked for before, so that a change while reading shows the next time."""
    images: list[bytes] = []
    folders: list[bytes] = []
    rest: list[os.DirEntry[bytes]] = []
    sure = time.time_ns() - found.st_mtime_ns > FRESH
    with os.scandir(path) as entries:
        for entry in entries:
            if entry.name.startswith(b"."):
                rest.append(entry)
            elif entry.is_symlink():
                sure = False
                rest.append(entry)
            elif extension(entry.name) in wanted and entry.is_file(follow_symlinks=False):
                images.append(entry.path)
            elif entry.is_dir(follow_symlinks=False) and entry.name.lower() not in SYSTEM:
                folders.append(entry.path)
            else:
                rest.append(entry)
    passed = _Rest(images, folders, wanted)
    for entry in rest:
        passed.sort(entry)
    sure = sure and not passed.opened
    if len(path) + 256 > LONGEST:
        passed.shorten()
    images.sort()
    status = found.st_dev, found.st_ino, found.st_mtime_ns if sure else UNSURE
    lengths = np.fromiter(map(len, images), dtype=np.int64, count=len(images))
    return Folder(path, status, b"".join(images), lengths, tuple(sorted(folders)), passed.counted())


class _Rest:
    """Sorts the entries of one folder that are neither plain folders nor files with an image's name.

    Attributes:
        opened: whether a file was opened to see what it holds.
    """

    def __init__(self, images: list[bytes], folders: list[bytes], wanted: frozenset[bytes]) -> None:
        self.opened = False
        self._images, self._folders, self._wanted = images, folders, wanted
        self._found: dict[tuple[Kind, str], list[bytes]] = {}

    def sort(self, entry: os.DirEntry[bytes]) -> None:
        """Take an entry as an image or as a folder, or count it."""
        if entry.name.startswith(b"."):
            self._pass("hidden", "", entry.path)
        elif entry.name.lower() in SYSTEM:
            self._pass("system", "", entry.path)
        else:
            try:
                self._take(entry, extension(entry.name))
            except OSError as error:
                if error.errno == errno.ENOENT and extension(entry.name) in self._wanted:
                    self._images.append(entry.path)  # a dead link is counted as unreadable
                else:
                    self._pass("link" if entry.is_symlink() else "file", error.strerror or "unknown", entry.path)

    def _take(self, entry: os.DirEntry[bytes], kind: bytes) -> None:
        """Sort an entry by what it is.

        Raises:
            OSError: it leads nowhere, or cannot be read.
        """
        plain = entry.is_file(follow_symlinks=False)  # known without asking the disk
        mode = stat.S_IFREG if plain else entry.stat().st_mode
        if stat.S_ISDIR(mode):
            if entry.is_symlink() and _leads_back(entry.path):
                self._pass("circle", "", entry.path)  # a class would get the images of all others
            else:
                self._folders.append(entry.path)
        elif stat.S_ISREG(mode):
            if kind in self._wanted or self._begins_as_image(entry.path):
                self._images.append(entry.path)
            else:
                self._pass("other", os.fsdecode(kind), entry.path)
        elif kind in self._wanted:
            self._pass("special", _special(mode), entry.path)

    def _begins_as_image(self, path: bytes) -> bool:
        """Return whether content counts, and is an image's."""
        if BY_CONTENT not in self._wanted:
            return False
        self.opened = True
        return begins_as_image(beginning(path))

    def shorten(self) -> None:
        """Count the images whose paths the system would refuse."""
        for path in [path for path in self._images if len(path) > LONGEST]:
            self._pass("path", f"over {LONGEST} bytes", path)
        self._images[:] = [path for path in self._images if len(path) <= LONGEST]

    def _pass(self, kind: Kind, reason: str, path: bytes) -> None:
        self._found.setdefault((kind, reason), []).append(path)

    def counted(self) -> tuple[Passed, ...]:
        """Return what was counted, with the first names."""
        return tuple(
            Passed(*key, len(paths), tuple(heapq.nsmallest(FIRST, paths))) for key, paths in sorted(self._found.items())
        )


def _leads_back(link: bytes) -> bool:
    """Whether a link to a folder leads to one that the link lies in."""
    target, place = os.path.realpath(link), os.path.realpath(os.path.dirname(link))
    return os.path.commonpath([target, place]) == target


def _special(mode: int) -> str:
    kinds = ((stat.S_ISFIFO, "a pipe"), (stat.S_ISSOCK, "a socket"))
    return next((word for test, word in kinds if test(mode)), "a device")


def cache_folder() -> Path | None:
    """Return where folders are remembered: `mst/index` in $XDG_CACHE_HOME or ~/.cache; None for a user without home."""
    home = os.path.expanduser("~")
    place = os.environ.get("XDG_CACHE_HOME") or ("" if home.startswith("~") else os.path.join(home, ".cache"))
    return Path(place) / "mst" / "index" if place else None


def cache_file(cache: Path, top: bytes, wanted: frozenset[bytes]) -> Path:
    """Return the file that remembers what is below `top`."""
    name = hashlib.blake2b(b"\0".join([top, *sorted(wanted)]), digest_size=16).hexdigest()
    return cache / f"{name}.npz"


def recall(file: Path) -> dict[bytes, Folder]:
    """Return the folders that a file remembers, by path; none if there is no such file or it is damaged."""
    try:
        content = file.read_bytes()
        with np.load(io.BytesIO(content), allow_pickle=False) as saved:  # a zip archive: it carries checksums
            if int(saved["format"]) != FORMAT:
                return {}
            paths = _cut(saved["paths"].tobytes(), saved["path_lengths"])
            below = iter(_cut(saved["below"].tobytes(), saved["below_lengths"]))
            block, lengths = saved["block"].tobytes(), saved["lengths"]
            status, counts = saved["status"].tolist(), saved["counts"].tolist()
            passed: dict[int, list[Passed]] = {}
            for number, kind, reason, many, names in json.loads(saved["passed"].tobytes()):
                entry = Passed(kind, reason, many, tuple(map(os.fsencode, names)))
                passed.setdefault(number, []).append(entry)
        folders: dict[bytes, Folder] = {}
        at = first = 0
        rows = zip(paths, status, counts, strict=True)
        for number, (path, (device, inode, changed), (images, subfolders)) in enumerate(rows):
            own = lengths[first : first + images]
            end = at + int(own.sum())
            held = tuple(next(below) for _ in range(subfolders))
            beside = tuple(passed.get(number, ()))
            folders[path] = Folder(path, (device, inode, changed), block[at:end], own, held, beside)
            first, at = first + images, end
    except Exception:  # whatever damaged bytes raise: it is made anew
        return {}
    return folders


def remember(file: Path, folders: Sequence[Folder]) -> None:
    """Write what `recall` reads; a disk that refuses is no reason to stop."""
    below = [path for folder in folders for path in folder.folders]
    passed = [
        (number, entry.kind, entry.reason, entry.count, [os.fsdecode(name) for name in entry.names])
        for number, folder in enumerate(folders)
        for entry in folder.passed
    ]
    stream = io.BytesIO()
    np.savez(
        stream,
        format=FORMAT,
        paths=_bytes([folder.path for folder in folders]),
        path_lengths=np.array([len(folder.path) for folder in folders], dtype=np.int64),
        status=np.array([folder.status for folder in folders], dtype=np.int64).reshape(-1, 3),
        counts=np.array([(len(folder.lengths), len(folder.folders)) for folder in folders]).reshape(-1, 2),
        below=_bytes(below),
        below_lengths=np.array([len(path) for path in below], dtype=np.int64),
        block=_bytes([folder.block for folder in folders]),
        passed=_bytes([json.dumps(passed).encode()]),
        lengths=np.concatenate([folder.lengths for folder in folders]),
    )
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(file, stream.getvalue())
    except (OSError, RunFailure):
        return


def _bytes(parts: Sequence[bytes]) -> npt.NDArray[np.uint8]:
    return np.frombuffer(b"".join(parts), dtype=np.uint8)


def _cut(block: bytes, lengths: npt.NDArray[np.int64]) -> list[bytes]:
    """Return the pieces of a block."""
    ends = lengths.cumsum().tolist()
    return [block[start:end] for start, end in zip([0, *ends[:-1]], ends, strict=True)] if ends else []
