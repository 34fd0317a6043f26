"""A cheap digest of a labelled set, which tells two sets of the same names apart by what their files hold."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from mst.data.sources import even_positions

MOST_SIZES, MOST_READ, LONGEST = 10_000, 256, 1 << 20
"""So many files give their size, so many of these their content, and of each so many bytes; evenly chosen."""


def digest_of(names: Sequence[str], *, files: Sequence[Path] = (), whole: Iterable[Path] = ()) -> str:
    """Return a SHA-256, hexadecimal, of a set that is read from files.

    It changes with the number, order and names of the images, with any byte of `whole`, with the size of a file (of up
    to 10,000) and with the content of the first megabyte of up to 256 files. It does not depend on where the files lie.

    Args:
        names: of the images; of a path the last part counts.
        files: images and masks.
        whole: files that count with every byte: annotations, lists.

    Raises:
        OSError: a file cannot be read.
    """
    digest = hashlib.sha256()
    _add(digest, *(Path(name).name for name in names))
    for path in whole:
        with path.open("rb") as file:
            _add(digest, hashlib.file_digest(file, "sha256").hexdigest())
    for index in even_positions(len(files), MOST_SIZES).tolist():
        _add(digest, files[index].name, files[index].stat().st_size)
    for index in even_positions(len(files), MOST_READ).tolist():
        with files[index].open("rb") as file:
            _add(digest, hashlib.sha256(file.read(LONGEST)).hexdigest())
    return digest.hexdigest()


def digest_of_values(names: Sequence[str], values: Iterable[Any]) -> str:
    """Return a SHA-256, hexadecimal, of the names and arrays or tensors of a set in memory."""
    digest = hashlib.sha256()
    _add(digest, *names)
    for value in values:
        array = value.numpy() if hasattr(value, "numpy") else value
        _add(digest, array.shape, array.dtype, hashlib.sha256(array.tobytes()).hexdigest())
    return digest.hexdigest()


def _add(digest: Any, *parts: object) -> None:
    for part in parts:
        digest.update(str(part).encode("utf-8", "surrogatepass") + b"\0")
