"""Writing files so that a crash leaves either the old content or the new, never half of it."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from mst.errors import RunFailure, UsageError


def write_atomic(path: Path, content: bytes | str) -> None:
    """Write aside, flush to disk, rename over `path`.

    Raises:
        RunFailure: the disk refused (full, read-only); the old file is untouched.
    """
    data = content.encode() if isinstance(content, str) else content
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with aside.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        with suppress(OSError):  # a read-only disk refuses this as well
            aside.unlink(missing_ok=True)
        raise RunFailure(f"cannot write {path}: {error.strerror or error}; the previous file is intact") from error


def check_folder(folder: Path, flag: str) -> None:
    """Refuse a place where no folder can be made, or nothing be written: before hours of work.

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
