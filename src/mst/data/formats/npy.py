"""Headers of NumPy's files, read and written without running code from them."""

from __future__ import annotations

import io
from functools import lru_cache
from typing import Any

import numpy as np

NPY_MAGIC = b"\x93NUMPY"
READERS = {
    (1, 0): (np.lib.format.read_array_header_1_0, 2),
    (2, 0): (np.lib.format.read_array_header_2_0, 4),
}
"""By version: the parser, and the digits (to the base 256) of the header's length."""
LONGEST_HEADER = 1 << 16
"""Bytes at the beginning of an array in which its header lies."""


def array_header(stream: io.BytesIO) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Return (shape, whether in Fortran's order, type) of a .npy file; the stream stands at its values then.

    Raises:
        ValueError: a damaged header, or one of another version than 1.0 and 2.0.
    """
    version = np.lib.format.read_magic(stream)
    if version not in READERS:
        raise ValueError(f"a .npy file of version {version}: only 1.0 and 2.0 are understood")
    _, digits = READERS[version]
    length = stream.read(digits)
    return _parsed(version, length + stream.read(int.from_bytes(length, "little")))


@lru_cache(maxsize=64)
def _parsed(version: tuple[int, int], header: bytes) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Return what a header says; images of one array have the same, and NumPy's parser takes as long as decoding."""
    read_header, _ = READERS[version]
    try:
        return read_header(io.BytesIO(header))
    except Exception as error:  # NumPy shows the parts of its parser, with their addresses
        raise ValueError("a .npy file with a damaged header") from error


@lru_cache(maxsize=64)
def npy_header(shape: tuple[int, ...], dtype: np.dtype[Any]) -> bytes:
    """Return the header of a .npy file in C's order."""
    stream = io.BytesIO()
    described = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(stream, described)
    return stream.getvalue()
