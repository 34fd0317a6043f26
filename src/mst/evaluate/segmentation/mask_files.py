"""One mask file to class numbers: grey values, palettes, colours, bits, arrays; turned by its own EXIF orientation.

Letters: H W pixels.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from mst.data.formats.npy import NPY_MAGIC, array_header
from mst.data.formats.tiff import pillow_reads, read_pages
from mst.errors import DataError, MissingExtra
from mst.evaluate.common.orientation import Frame
from mst.runtime.images import (
    MAX_PIXELS,
    PNG_MAGIC,
    Header,
    image_header,
    open_image,
    quiet_pillow,
    read_regular,
    turned,
    upright,
)
from mst.runtime.names import shown

JPEG_MAGIC = b"\xff\xd8\xff"
OPAQUE = 255
Values = npt.NDArray[Any]


@dataclass(frozen=True)
class Labels:
    """What the values and colours of masks mean.

    Attributes:
        names: of the classes; class number = position.
        ignore_index: value of pixels without a class, or None.
        colours: 65536 red + 256 green + blue -> class number (or `ignore_index`); empty where none are given.
    """

    names: tuple[str, ...]
    ignore_index: int | None = None
    colours: Mapping[int, int] = field(default_factory=dict)


def mask_size(path: Path) -> tuple[int, int]:
    """Return (H, W) of a mask file, turned by its own orientation.

    Raises:
        OSError, ValueError: unreadable.
    """
    with path.open("rb") as file:
        beginning = file.read(len(NPY_MAGIC))
    return _array(read_regular(path)).shape[:2] if beginning == NPY_MAGIC else image_header(path).upright


def read_mask(
    path: Path, size: tuple[int, int], labels: Labels, *, image: Header | None = None, frame: Frame = "displayed"
) -> Tensor:
    """Return a mask file as class numbers, int64 [H, W], turned as its image is displayed.

    Args:
        path: the mask.
        size: (H, W) of the image as it is displayed.
        labels: classes, the value of pixels without one, colours.
        image: header of an image that EXIF turns; None = it is not turned.
        frame: whether the mask belongs to the image as it is displayed or as it is stored.

    Raises:
        DataError: unreadable, of another size than its image, or with a value or colour that is no class.
    """
    mask = read_values(path, size, labels, image=image, frame=frame)
    check_mask(mask, len(labels.names), labels.ignore_index, str(path))
    return mask


def read_values(
    path: Path,
    size: tuple[int, int],
    labels: Labels | None = None,
    *,
    image: Header | None = None,
    frame: Frame = "displayed",
) -> Tensor:
    """Return the values of a mask, int64 [H, W], as `read_mask` but unchecked.

    Raises:
        DataError: unreadable, of another kind, of another size than its image, or with a colour that is no class.
    """
    labels = labels or Labels(())
    try:
        values = _stored(path, labels)
    except (DataError, MissingExtra):
        raise
    except OSError as error:
        raise DataError(f"{shown(path)}: cannot be read as a mask ({error.strerror or error})") from error
    except Exception as error:  # a decoder may stumble over damaged bytes in any way
        raise DataError(f"{shown(path)}: cannot be read as a mask ({error})") from error
    if values.dtype.kind not in "ui":
        raise DataError(f"{shown(path)}: a mask has whole numbers of classes, this one has {values.dtype}")
    fitting = size if image is None or frame == "displayed" else image.stored
    if values.shape != fitting:
        turn = "" if image is None else f"; EXIF turns the image (orientation {image.orientation})"
        turn += f", stored it is {image.stored[0]}x{image.stored[1]}" if image is not None else ""
        raise DataError(
            f"{shown(path)}: mask is {values.shape[0]}x{values.shape[1]}, "
            f"its image is {size[0]}x{size[1]} (H x W){turn}"
        )
    if image is not None and frame == "stored":
        values = turned(values, image.orientation)
    return torch.from_numpy(values.astype(np.int64, order="C"))


def check_mask(mask: Tensor, num_classes: int, ignore_index: int | None, name: str) -> None:
    """Refuse a mask with a value that is neither a class nor `ignore_index`.

    Raises:
        DataError: naming the value.
    """
    wrong = (mask < 0) | (mask >= num_classes)
    if ignore_index is not None:
        wrong &= mask != ignore_index
    if bool(wrong.any()):
        value = int(mask[wrong][0])
        black_and_white = num_classes == 2 and set(torch.unique(mask).tolist()) <= {0, 255}
        hint = '; in a mask of 0 and 255 white is a class with "colors": [[0, 0, 0], [255, 255, 255]] in classes.json, '
        hint += 'and nothing with "ignore_index": 255'
        raise DataError(
            f"{name}: {value} is no class of 0..{num_classes - 1} and not ignore_index {ignore_index}"
            f"{hint if black_and_white else ''}"
        )


def _stored(path: Path, labels: Labels) -> Values:
    """Return class numbers [H, W] as the file has them, upright by its own orientation."""
    data = read_regular(path)
    if data.startswith(JPEG_MAGIC):
        raise DataError(f"{shown(path)}: a JPEG changes the numbers of a mask: save masks as PNG")
    if data.startswith(NPY_MAGIC):
        return _one_band(path, _array(data), labels)
    if not pillow_reads(data):
        return _one_band(path, read_pages(data, first_only=True)[0].values, labels)
    with quiet_pillow, open_image(data) as file:
        image = upright(file)
        values = np.asarray(image)
        if image.mode == "1":
            return values.astype(np.uint8)
        if image.mode == "L" and data.startswith(PNG_MAGIC) and data[24] in {2, 4}:  # Pillow stretches them to 255
            stretched: Values = values // (255 // (2 ** data[24] - 1))
            return stretched
        if image.mode in {"P", "PA"}:
            return _indexed(path, image, labels)
        if image.mode in {"L", "LA", "RGB", "RGBA"} or image.mode.startswith("I"):
            return _one_band(path, values, labels)
        raise DataError(f"{shown(path)}: a mask has class numbers or colours, this one is of mode {image.mode}")


def _array(data: bytes | bytearray) -> Values:
    """Return a .npy file's array without running code from it; its header must agree with the file's size."""
    stream = io.BytesIO(data)
    shape, _, dtype = array_header(stream)
    count = int(np.prod(shape, dtype=object))
    if dtype.kind not in "bui" or len(shape) not in {2, 3} or not 0 < count <= 4 * MAX_PIXELS:
        raise ValueError(f"an array of {dtype} and shape {shape}, not of whole numbers [H, W]")
    if stream.tell() + count * dtype.itemsize > len(data):
        raise ValueError(f"an array of shape {shape} in {len(data)} bytes: truncated")
    values: Values = np.load(io.BytesIO(data), allow_pickle=False)
    return values.astype(np.uint8) if dtype.kind == "b" else values


def _one_band(path: Path, values: Values, labels: Labels) -> Values:
    """Return class numbers [H, W] of grey values [H, W], or of colours [H, W, bands] with or without transparency."""
    bands = 1 if values.ndim == 2 else values.shape[2]
    if values.ndim == 3 and bands == 1:
        values = values[..., 0]
    if values.ndim == 2:
        if values.dtype == np.uint8 and labels.colours and all(_is_grey(colour) for colour in labels.colours):
            return _translated(path, values.astype(np.int64) * 0x010101, labels)
        return values
    if bands > 4 or values.dtype != np.uint8:
        raise DataError(f"{shown(path)}: a mask has class numbers or colours, this one has shape {values.shape}")
    if bands in {2, 4}:
        partly = values[..., -1] != OPAQUE
        if labels.colours:
            partly &= values[..., -1] != 0
        _refuse(path, partly, values, "is transparent")
        values = values[..., :-1]
    if values.shape[2] == 1:
        return _one_band(path, values, labels)
    if not labels.colours:
        coloured = (values != values[..., :1]).any(2)
        _refuse(path, coloured, values, 'is no class number: give "colors": [[r, g, b], ...] in classes.json')
        return values[..., 0]
    packed = values.astype(np.int64) @ np.array([1 << 16, 1 << 8, 1])
    return _translated(path, packed, labels)


def _indexed(path: Path, image: Image.Image, labels: Labels) -> Values:
    """Return the classes of a palette image: those of its colours if `labels` knows these, else its indices."""
    if image.mode == "PA":
        image = image.getchannel("P") if "P" in image.getbands() else image.convert("P")
    numbers = np.asarray(image)
    if not labels.colours:
        return numbers
    flat = np.frombuffer(image.convert("RGB").tobytes(), np.uint8).reshape(*numbers.shape, 3)
    packed = flat.astype(np.int64) @ np.array([1 << 16, 1 << 8, 1])
    used, first = np.unique(numbers, return_index=True)
    found = {int(number): labels.colours.get(int(packed.flat[at])) for number, at in zip(used, first, strict=True)}
    if all(number == known for number, known in found.items() if known is not None) and None in found.values():
        return numbers  # its palette is another, or says the same
    return _translated(path, packed, labels)


def _is_grey(colour: int) -> bool:
    return colour % 0x010101 == 0


def _translated(path: Path, packed: Values, labels: Labels) -> Values:
    """Return the class numbers of packed colours [H, W].

    Raises:
        DataError: a colour is no class; named with its first pixel.
    """
    known = np.array(sorted(labels.colours))
    classes: Values = np.array([labels.colours[int(colour)] for colour in known], dtype=np.int64)
    place = np.searchsorted(known, packed).clip(max=len(known) - 1)
    unpacked = np.stack([packed >> 16, packed >> 8 & 255, packed & 255], -1)
    _refuse(path, known[place] != packed, unpacked, "is the colour of no class in classes.json")
    translated: Values = classes[place]
    return translated


def _refuse(path: Path, wrong: Values, values: Values, what: str) -> None:
    if wrong.any():
        row, column = np.argwhere(wrong)[0].tolist()
        colour = ", ".join(map(str, values[row, column].tolist()))
        raise DataError(
            f"{shown(path)}: colour ({colour}) at row {row}, column {column} {what} ({int(wrong.sum())} such pixels)"
        )
