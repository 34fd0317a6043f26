"""Walking folders of images, and remembering what each held, so that a folder that did not change is not read again.

What is remembered of a folder counts only while its device, inode and time of last change (in nanoseconds) are the
same: a file that is added, removed or renamed changes that time. Folders that hold links, whose targets may change
without a trace, and folders that changed seconds before they were read are always read again.
"""

from __future__ import annotations

import hashlib
import io
import os
import time
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from mst.errors import RunFailure, UsageError
from mst.runtime.files import write_atomic

FRESH = 3 * 10**9
"""Nanoseconds in which a folder may change once more without another time: file systems count in up to 2 seconds."""
UNSURE = -1
"""In place of a time: to be read again."""
FEWEST = 10_000
"""Images from which a folder is worth remembering; fewer are found in no time."""
FORMAT = 1


@dataclass(frozen=True, eq=False)
class Folder:
    """What one folder holds, without what its sub-folders hold.

    Attributes:
        path: absolute, in the file system's encoding.
        status: device, inode and time of last change, or `UNSURE`.
        block: the paths of its images, by name, one after the other.
        lengths: of each of them in bytes, int64.
        folders: the paths of its sub-folders, by name.
    """

    path: bytes
    status: tuple[int, int, int]
    block: bytes
    lengths: npt.NDArray[np.int64]
    folders: tuple[bytes, ...]


def walk(
    top: bytes, visited: set[tuple[int, int]], wanted: frozenset[bytes], known: Mapping[bytes, Folder]
) -> Iterator[Folder]:
    """Yield a folder and all below: a folder first, then its sub-folders, by name.

    Args:
        top: where to begin.
        visited: device and inode of the folders that were met already and are passed over; added to.
        wanted: extensions of images, lower case.
        known: folders as they once were, by path.

    Raises:
        UsageError: a folder cannot be read.
    """
    waiting = [top]
    while waiting:
        path = waiting.pop()
        try:
            found = os.stat(path)
            if (found.st_dev, found.st_ino) in visited:
                continue
            visited.add((found.st_dev, found.st_ino))
            folder = known.get(path)
            if folder is None or folder.status != (found.st_dev, found.st_ino, found.st_mtime_ns):
                folder = _read(path, found, wanted)
        except OSError as error:
            raise UsageError(f"{os.fsdecode(path)} cannot be searched: {error.strerror}") from error
        yield folder
        waiting.extend(reversed(folder.folders))


def _read(path: bytes, found: os.stat_result, wanted: frozenset[bytes]) -> Folder:
    """Read one folder; `found` was asked for before, so that a change while reading shows the next time."""
    images: list[bytes] = []
    folders: list[bytes] = []
    sure = time.time_ns() - found.st_mtime_ns > FRESH
    with os.scandir(path) as entries:
        for entry in entries:
            if entry.name.startswith(b"."):
                continue
            sure = sure and not entry.is_symlink()
            if entry.is_dir():
                folders.append(entry.path)
            elif extension(entry.name) in wanted and (entry.is_file() or entry.is_symlink()):
                images.append(entry.path)  # a dead link too: it is to be counted as unreadable, not lost
    images.sort()
    status = found.st_dev, found.st_ino, found.st_mtime_ns if sure else UNSURE
    lengths = np.fromiter(map(len, images), dtype=np.int64, count=len(images))
    return Folder(path, status, b"".join(images), lengths, tuple(sorted(folders)))


def extension(name: bytes) -> bytes:
    """Return what follows the last dot, in lower case; nothing where there is no dot."""
    return name.rpartition(b".")[2].lower() if b"." in name else b""


def cache_folder() -> Path:
    """Return where folders are remembered: `mst/index` in $XDG_CACHE_HOME or ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mst" / "index"


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
        folders: dict[bytes, Folder] = {}
        at = first = 0
        for path, (device, inode, changed), (images, subfolders) in zip(paths, status, counts, strict=True):
            own = lengths[first : first + images]
            end = at + int(own.sum())
            held = tuple(next(below) for _ in range(subfolders))
            folders[path] = Folder(path, (device, inode, changed), block[at:end], own, held)
            first, at = first + images, end
    except (OSError, ValueError, KeyError, EOFError, StopIteration, zipfile.BadZipFile):
        return {}
    return folders


def remember(file: Path, folders: Sequence[Folder]) -> None:
    """Write what `recall` reads; a disk that refuses is no reason to stop."""
    below = [path for folder in folders for path in folder.folders]
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
