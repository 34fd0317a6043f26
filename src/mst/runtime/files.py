"""Writing files so that a crash leaves either the old content or the new, never half of it."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from mst.errors import RunFailure


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


def sync_folder(folder: Path) -> None:
    """Flush a folder's entries to disk, so that a rename in it survives a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
