"""Images that are slices of one array: a .npy file, an array in a .npz file, or tensors in memory.

An image's bytes are its slice as a .npy file of its own, so that all that holds for single arrays (channels first or
last, value ranges, what is refused) holds here as well.
"""

from __future__ import annotations

import io
import math
import os
import struct
import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from mst.data.files.passed import NOTHING, PassedOver
from mst.data.formats.npy import LONGEST_HEADER, NPY_MAGIC, array_header, npy_header
from mst.data.sources.protocol import ImageSource, identity_of_bytes
from mst.errors import DataError
from mst.runtime.identity import DataIdentity
from mst.runtime.memory import available_memory
from mst.runtime.names import shown

FEW_COLUMNS = 4
"""So many or fewer along the last side are channels."""

Header = tuple[tuple[int, ...], bool, np.dtype[Any]]
"""Shape, whether in Fortran's order, type."""
LOCAL_HEADER = struct.Struct("<26xHH")
"""Of a zip file's member: lengths of its name and of its extra field (APPNOTE.TXT, section 4.3.7)."""


@dataclass(frozen=True, eq=False)
class ArrayFile(ImageSource):
    """Slices of an array [n, ...] in a file; each is read when it is asked for.

    Attributes:
        path: the file.
        member: of a .npz file; empty for a .npy file.
        start: where the values begin in the file.
        shape: of one image.
        dtype: of the values.
        positions: of the images among the slices.
        content: the values, where they are compressed; None = they are read from the file.
    """

    path: Path
    member: str
    start: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    positions: npt.NDArray[np.int64]
    content: bytes | None = field(default=None, repr=False)
    passed: PassedOver = NOTHING

    def __len__(self) -> int:
        return len(self.positions)

    def name(self, position: int) -> str:
        """Return the file's path, and the number of the slice."""
        member = f":{self.member}" if self.member else ""
        return f"{os.fspath(self.path)}{member}[{self.positions[position]}]"

    def size(self, position: int) -> int:
        """Return the bytes of a slice with its header."""
        return len(self._header) + self._values

    def read_bytes(self, position: int, most: int | None = None) -> bytearray:
        """Return a slice as a .npy file.

        Raises:
            OSError: the file is not there any more, or shorter.
        """
        wanted = self._values if most is None else min(most, self._values)
        place = self.start + int(self.positions[position]) * self._values
        if self.content is not None:
            values = self.content[place : place + wanted]
        else:
            descriptor = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                values = os.pread(descriptor, wanted, place)
            finally:
                os.close(descriptor)
        if len(values) < wanted:
            raise OSError("the array ends before this image")
        data = bytearray(self._header)
        data += values
        return data

    def only(self, positions: npt.NDArray[np.int64]) -> ArrayFile:
        """Return the images at these positions, in this order."""
        return replace(self, positions=self.positions[positions])

    def files(self) -> Iterable[Path]:
        """Return the file."""
        return [self.path]

    def fingerprint(self, name: str = "") -> DataIdentity:
        """Return what these images are: their places in the array, shape and type, and an even sample of them."""
        said = f"{self.member} {self.shape} {self.dtype.str}".encode()
        return identity_of_bytes(self, name, [said, *(b"%d" % position for position in self.positions.tolist())])

    @cached_property
    def _values(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    @cached_property
    def _header(self) -> bytes:
        return npy_header(self.shape, self.dtype)


@dataclass(frozen=True, eq=False)
class MemoryImages(ImageSource):
    """Arrays in memory, [H, W, C] or [C, H, W] each, of any sizes.

    Attributes:
        arrays: one for each image.
        names: of the images.
    """

    arrays: Sequence[npt.NDArray[Any]]
    names: Sequence[str]
    passed: PassedOver = NOTHING

    @classmethod
    def of(cls, arrays: Sequence[Any], title: str = "image") -> MemoryImages:
        """Hold arrays under a number each."""
        found = [np.asarray(array) for array in arrays]
        return cls(found, [f"{title} {position}" for position in range(len(found))])

    @classmethod
    def of_tensors(cls, images: Sequence[Tensor], title: str = "image") -> MemoryImages:
        """Hold uint8 images [C, H, W]."""
        return cls.of([_unmistakable(image) for image in images], title)

    def __len__(self) -> int:
        return len(self.arrays)

    def name(self, position: int) -> str:
        """Return the name of an image."""
        return self.names[position]

    def size(self, position: int) -> int:
        """Return the bytes of an array, without its header."""
        return self.arrays[position].nbytes

    def read_bytes(self, position: int, most: int | None = None) -> bytearray:
        """Return an array as a .npy file."""
        array = self.arrays[position]
        data = bytearray(npy_header(array.shape, array.dtype))
        data += array.tobytes()
        return data

    def only(self, positions: npt.NDArray[np.int64]) -> MemoryImages:
        """Return the images at these positions, in this order."""
        chosen = positions.tolist()
        return replace(self, arrays=[self.arrays[i] for i in chosen], names=[self.names[i] for i in chosen])

    def files(self) -> Iterable[Path]:
        """Return nothing: there are no files."""
        return []

    def fingerprint(self, name: str = "") -> DataIdentity:
        """Return what these images are: their names, and an even sample of them."""
        return identity_of_bytes(self, name, map(os.fsencode, self.names))


def _unmistakable(image: Tensor) -> Tensor:
    """Return an image [C, H, W] as it is, or as [H, W, C] where it would be taken for that (W = C)."""
    return image.permute(1, 2, 0) if image.shape[2] == image.shape[0] else image


def is_array_of_images(path: Path, channels: int) -> bool:
    """Return whether a .npy file holds several images, not one; False where its header cannot be read."""
    try:
        with path.open("rb") as file:
            shape, _, _ = array_header(io.BytesIO(file.read(LONGEST_HEADER)))
    except (OSError, ValueError):
        return False
    return _several(shape, channels)


def array_images(path: Path, channels: int) -> ArrayFile:
    """Return the images in a .npy file, or in the one array of images of a .npz file.

    Args:
        path: the file; nothing in it is run.
        channels: of the images; an array [n, H, W] is of grey ones.

    Raises:
        DataError: no array of images, several, or one that is damaged or laid out in another way.
    """
    try:
        return _in_zip(path, channels) if zipfile.is_zipfile(path) else _in_npy(path, channels)
    except (OSError, ValueError, zipfile.BadZipFile, EOFError) as error:
        raise DataError(f"{shown(path)} cannot be read as an array of images: {error}") from error


def _several(shape: tuple[int, ...], channels: int) -> bool:
    """Return whether an array is of several images; [H, W, 3] is one in colour, not H grey ones of 3 columns."""
    grey = len(shape) == 3 and channels == 1 and shape[0] != 1 and shape[2] > FEW_COLUMNS
    return len(shape) == 4 or grey


def _in_npy(path: Path, channels: int) -> ArrayFile:
    with path.open("rb") as file:
        stream = io.BytesIO(file.read(LONGEST_HEADER))
    if not stream.getvalue().startswith(NPY_MAGIC):
        raise ValueError("no .npy file")
    header = array_header(stream)
    if not _several(header[0], channels):
        raise ValueError(f"its shape is {list(header[0])}: [n, H, W, C] or [n, C, H, W] is expected")
    return _checked(path, "", header, stream.tell(), path.stat().st_size)


def _in_zip(path: Path, channels: int) -> ArrayFile:
    """Find the array of images in a .npz file."""
    found: list[ArrayFile] = []
    others: list[str] = []
    with zipfile.ZipFile(path) as file:
        for info in file.infolist():
            member = info.filename.removesuffix(".npy")
            with file.open(info) as part:
                stream = io.BytesIO(part.read(LONGEST_HEADER))
            header = array_header(stream) if stream.getvalue().startswith(NPY_MAGIC) else ((), False, np.dtype("V"))
            if not _several(header[0], channels):
                others.append(f"{member} {list(header[0])}")
                continue
            if info.compress_type == zipfile.ZIP_STORED:
                start = _start_of(path, info) + stream.tell()
                end = start - stream.tell() + info.file_size
                found.append(_checked(path, member, header, start, end))
            else:
                if info.file_size > available_memory() // 2:
                    raise ValueError(f"{member} is compressed and needs {info.file_size} bytes of memory: use np.savez")
                one = _checked(path, member, header, stream.tell(), info.file_size)
                found.append(replace(one, content=file.read(info)))
    if len(found) != 1:
        names = ", ".join(one.member for one in found) or f"none; it holds {', '.join(others) or 'nothing'}"
        raise ValueError(f"one array [n, H, W, C] or [n, C, H, W] is expected, found: {names}")
    return found[0]


def _start_of(path: Path, info: zipfile.ZipInfo) -> int:
    """Return where the bytes of a stored member begin."""
    with path.open("rb") as file:
        file.seek(info.header_offset)
        lengths = LOCAL_HEADER.unpack(file.read(LOCAL_HEADER.size))
    return info.header_offset + LOCAL_HEADER.size + int(sum(lengths))


def _checked(path: Path, member: str, header: Header, start: int, end: int) -> ArrayFile:
    """Return the images of an array whose values lie at start..end of its file.

    Raises:
        ValueError: they cannot be read one by one, or are not whole.
    """
    shape, fortran, dtype = header
    if dtype.kind not in "buif":
        raise ValueError(f"an array of {dtype}: only whole numbers and floats are understood")
    if fortran:
        raise ValueError("it is stored in Fortran's order, so that no image lies in one piece: use ascontiguousarray")
    if not math.prod(shape) or start + math.prod(shape) * dtype.itemsize > end:
        raise ValueError(f"an array of shape {list(shape)} in {end - start} bytes: empty or truncated")
    return ArrayFile(path, member, start, shape[1:], dtype, np.arange(shape[0], dtype=np.int64))
