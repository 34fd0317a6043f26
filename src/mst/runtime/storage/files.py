"""Writing files so that a crash leaves either the old content or the new, never half of it."""

from __future__ import annotations

import hashlib
import os
import re
import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from mst.errors import RunFailure, UsageError

_HOST = hashlib.blake2b(socket.gethostname().encode("utf-8", "surrogateescape"), digest_size=4).hexdigest()
_TAIL = ".tmp"
_WRITER = r"(\d+)(?:-(\d+))?"
"""Process and thread in the name of a half-written file; older versions name no thread."""

_writes = True


def may_write() -> bool:
    """Whether this process writes files; if not, another one of its run writes the same ones."""
    return _writes


@contextmanager
def left_to_another(yes: bool) -> Iterator[None]:
    """Inside, if `yes`, everything that is written below runs, results and models is left to another process."""
    global _writes  # noqa: PLW0603  (it is the process's)
    before, _writes = _writes, _writes and not yes
    try:
        yield
    finally:
        _writes = before


def write_atomic(path: Path, content: bytes | str) -> None:
    """Write a file of another name, flush it to disk, and rename it to `path`; nothing if that is left to another.

    Raises:
        RunFailure: the disk refused (full, read-only); the old file is untouched.
    """
    write_together([(path, content)])


def write_together(files: Sequence[tuple[Path, bytes | str]]) -> None:
    """Write files of one folder that mean something together only.

    All are written aside first. Then the last one goes, the others come, and it comes: a kill leaves all old ones, all
    new ones, or not the last one. So let that be the one without which the others are not taken for anything.

    Raises:
        RunFailure: the disk refused (full, read-only); the old files are untouched.
    """
    if not _writes:
        return
    path = files[0][0]
    try:
        for path, content in files:
            remove_asides(path.parent, path.name)
            write_aside(path, content.encode() if isinstance(content, str) else content)
        put_in_place([path for path, _ in files])
        sync_folder(path.parent)
    except OSError as error:
        for written, _ in files:
            with suppress(OSError):  # a read-only disk refuses this as well
                aside_of(written).unlink(missing_ok=True)
        raise RunFailure(f"cannot write {path}: {error.strerror or error}; the previous file is intact") from error


def write_aside(path: Path, content: bytes, *, flush: bool = True) -> None:
    """Write what is going to be `path` beside it."""
    with aside_of(path).open("wb") as file:
        file.write(content)
        if flush:
            file.flush()
            os.fsync(file.fileno())


def put_in_place(paths: Sequence[Path]) -> None:
    """Give files that were written aside their names, in such an order that a part of them is never taken for all."""
    if len(paths) > 1:
        paths[-1].unlink(missing_ok=True)
    for path in paths:
        aside_of(path).replace(path)


def aside_of(path: Path) -> Path:
    """Return where to write before the rename to `path`: beside it, under a name that only this thread uses."""
    return path.with_name(f".{_short(path.name)}.{_HOST}-{os.getpid()}-{threading.get_native_id()}{_TAIL}")


def remove_asides(folder: Path, name: str | None = None) -> None:
    """Delete half-written files that ended processes and threads of this machine left in a folder.

    Args:
        folder: of the files.
        name: of the file that should have been written; None = of any.
    """
    if not _writes:
        return
    pattern = re.compile(rf"\.(.+)\.{_HOST}-{_WRITER}{re.escape(_TAIL)}")
    wanted = None if name is None else _short(name)
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            match = pattern.fullmatch(entry.name)
            if match and wanted in {None, match[1]} and not _at_work(int(match[2]), match[3]):
                with suppress(OSError):
                    os.unlink(entry.path)


def is_aside(name: str) -> bool:
    """Whether a name is one that `aside_of` gives, on any machine."""
    return re.fullmatch(rf"\..+\.[0-9a-f]{{8}}-{_WRITER}{re.escape(_TAIL)}", name) is not None


def _short(name: str) -> str:
    """Return a name cut so that the rest still fits: file systems allow 255 bytes."""
    return os.fsdecode(os.fsencode(name)[:200])


def _at_work(process: int, thread: str | None) -> bool:
    """Return whether somebody else may be writing: this thread is not, as it writes one file after the other."""
    if process == os.getpid():  # or an earlier process had the same number
        return thread in {str(other.native_id) for other in threading.enumerate()} - {str(threading.get_native_id())}
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def check_folder(folder: Path, flag: str) -> None:
    """Refuse, before hours of work, a place where no folder can be made or nothing can be written.

    Args:
        folder: existing or not.
        flag: the option that named it, for the message.

    Raises:
        UsageError: it is a file or lies below one, this user may not write there, or its name is too long.
    """
    try:
        folder.stat()
    except (FileNotFoundError, NotADirectoryError):
        pass
    except OSError as error:
        raise UsageError(f"{flag} {folder}: {error.strerror}: name another folder") from error
    place = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not place.is_dir():
        where = "is a file" if place == folder else f"lies below {place}, which is a file"
        raise UsageError(f"{flag} {folder} {where}: name a folder")
    if not os.access(place, os.W_OK | os.X_OK):
        raise UsageError(f"{flag} {folder}: no permission to write in {place}: name another folder")


def sync_folder(folder: Path) -> None:
    """Flush a folder's entries to disk, so that a rename in it survives a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
