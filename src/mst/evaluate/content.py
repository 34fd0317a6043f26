"""What a labelled set holds, cheaply: two sets of the same names are told apart by what their files hold."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from mst.runtime.identity import DataIdentity, identify, relative_names


def identity_of_files(
    names: Sequence[str], *, files: Sequence[Path] = (), annotations: Iterable[Path | bytes] = (), title: str = ""
) -> DataIdentity:
    """Return the identity of a set that is read from files: the same wherever the files lie.

    Args:
        names: of the images; where they are paths, without the folder that they share.
        files: images and masks.
        annotations: files that count with every byte (annotations, lists), and bytes such as labels.
        title: what the set is called.
    """
    encoded = [os.fsencode(name) for name in names]
    return identify(title, relative_names(encoded), count=len(names), files=files, annotations=annotations)


def identity_of_values(
    names: Sequence[str], values: Iterable[Any], *, annotations: Iterable[bytes] = (), title: str = ""
) -> DataIdentity:
    """Return the identity of a set in memory, from its names and arrays or tensors of some of its images."""
    digest = hashlib.sha256()
    for value in values:
        array = value.numpy() if hasattr(value, "numpy") else value
        digest.update(f"{array.shape} {array.dtype} ".encode() + array.tobytes())
    described = [digest.digest(), *annotations]
    return identify(title, [os.fsencode(name) for name in names], count=len(names), annotations=described)
