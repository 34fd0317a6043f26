"""What one image file holds: size, mode, depth, statistics, digest and signature; or why it cannot be read."""

from __future__ import annotations

import hashlib
import io
import math
import re
import threading
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from mst.data.decoding import UnreadableImage, decode_bytes, decode_large_png, said
from mst.data.formats.jpeg import Detail
from mst.data.formats.large import png_orientation
from mst.data.formats.npy import NPY_MAGIC
from mst.data.formats.tiff import MAGIC, depth_of, pillow_reads
from mst.data.inspection.signature import SIDE, of_small, signature
from mst.data.sources import ImageSource
from mst.data.statistics import STRIP, moments, sums_of
from mst.data.value_range import BY_TYPE, Scale
from mst.runtime.images import PNG_MAGIC, image_header, open_image, orientation, quiet_pillow, turned

HEAVY = 1 << 24
"""Bytes of a file from which it is opened one at a time, whatever it holds."""
LARGE = 1 << 24
"""Pixels above which images are opened one at a time, in strips, and JPEGs at a part of their size."""
COMPOSED = {"RGBA", "LA", "PA", "La", "RGBa"}
STRIPPED = {"1", "L", "P", "RGB", "RGBX", "CMYK", "YCbCr", "LAB", "HSV"} | COMPOSED
DEPTHS = {"1": "1 bit", "I": "32 bits", "F": "32-bit float"}
LOOKED_AT = 1 << 16
"""Pixels, at even distances, by which an image is called grey."""
GREY_APART = 4
"""Levels that the colours of a grey pixel may lie apart: what JPEG leaves of a grey picture stored in colour."""
CUT_WORDS = re.compile("truncated|incomplete|ends before|unexpected end|not enough image data|broken PNG file", re.I)
"""What decoders say of a file that ends too early."""

Trouble = Literal["empty", "truncated", "no image", "damaged", "unopened", ""]

_one_large = threading.RLock()


@dataclass(frozen=True)
class ImageFacts:
    """What one file holds.

    Attributes:
        name: its path, or where it lies in a larger file.
        reason: why it cannot be read; empty for a readable one.
        size: (H, W), upright.
        mode: Pillow's name for its channels; "array" for a .npy file.
        form: Pillow's name for its format; "NPY" for an array.
        depth: of its values as stored: "8 bits", "16 bits", "float32", ...
        values: least and largest value as stored, where it is not 8 bits deep; None for others.
        turned: whether EXIF data turn or mirror it.
        mean: of the channels in [0, 1].
        square: mean of their squares.
        trouble: the kind of the reason; of a readable one "truncated", where its end is missing.
        stored: bytes of the file.
        digest: of the file; equal ones have equal bytes.
        signature: see `mst.data.inspection.signature`.
        grey: whether it has no colours, however it is stored; of three channels only.
        frames: of an animation, pages of a TIFF; 1 of other images.
    """

    name: str
    reason: str = ""
    size: tuple[int, int] = (0, 0)
    mode: str = ""
    form: str = ""
    depth: str = ""
    values: tuple[float, float] | None = None
    turned: bool = False
    mean: tuple[float, ...] = ()
    square: tuple[float, ...] = ()
    trouble: Trouble = ""
    stored: int = 0
    digest: bytes = b""
    signature: bytes = b""
    grey: bool = False
    frames: int = 1

    @property
    def deviation(self) -> float:
        """Standard deviation of the pixels in levels of 8 bits, of the channel where it is largest."""
        spread = (square - mean * mean for mean, square in zip(self.mean, self.square, strict=True))
        return 255 * math.sqrt(max(0.0, *spread)) if self.mean else 0.0


class _Looked(NamedTuple):
    """What is taken from the pixels of an image."""

    mean: tuple[float, ...]
    square: tuple[float, ...]
    signature: bytes
    grey: bool


class _Stored(NamedTuple):
    """How an image is stored, see `ImageFacts`."""

    mode: str
    form: str
    depth: str
    values: tuple[float, float] | None = None
    turned: bool = False


def image_facts(images: ImageSource, position: int, channels: int = 3, scale: Scale = BY_TYPE) -> ImageFacts:
    """Open one image completely; a broken one is a fact, not an error."""
    name = images.name(position)
    data = bytearray()
    try:
        with _one_large if images.size(position) > HEAVY else nullcontext():
            data = images.read_bytes(position)
            facts = _array_facts if data.startswith(NPY_MAGIC) else _picture_facts
            return facts(name, data, channels, scale)
    except UnreadableImage as problem:
        reason = problem.reason
    except OSError as problem:
        reason = problem.strerror or " ".join(said(problem).split())
        if not data:
            return ImageFacts(name, reason, trouble="unopened")
    except Exception as problem:  # a decoder may stumble over damaged bytes in any way
        reason = " ".join(said(problem).split())
    return ImageFacts(name, reason, trouble=_trouble(data, reason), stored=len(data))


def ends_early(data: bytes | bytearray) -> bool:
    """Return whether the end of a JPEG, PNG, GIF or WebP is missing; False of all else.

    JPEG: no end marker after the last start of a scan (ITU-T T.81, B.1.1.3); PNG: no IEND chunk; GIF: no trailer; WebP:
    fewer bytes than its RIFF header says.
    """
    if data.startswith(b"\xff\xd8\xff"):
        return data.rfind(b"\xff\xd9") < max(data.rfind(b"\xff\xda"), 2)
    if data.startswith(PNG_MAGIC):
        return data.rfind(b"IEND") < 0
    if data.startswith((b"GIF87a", b"GIF89a")):
        return data.rfind(b";", 13) < 0 or bool(bytes(data[-1:]) not in {b";", b"\0"} and b"\0;" not in data[-1024:])
    return data[:4] == b"RIFF" and data[8:12] == b"WEBP" and int.from_bytes(data[4:8], "little") + 8 > len(data)


def _trouble(data: bytearray, reason: str) -> Trouble:
    """Return the kind of a reason."""
    if not data:
        return "empty"
    if ends_early(data) or CUT_WORDS.search(reason):
        return "truncated"
    return "no image" if "not an image" in reason else "damaged"


def _array_facts(name: str, data: bytearray, channels: int, scale: Scale) -> ImageFacts:
    """Return what a .npy file holds."""
    pixels = decode_bytes(name, data, channels=channels, scale=scale)  # [C, H, W]; its header has been checked
    stored = np.load(io.BytesIO(data), allow_pickle=False)
    values = None if stored.dtype == np.uint8 else (float(stored.min()), float(stored.max()))
    return _found(name, data, _looked(pixels), _size(pixels), _Stored("array", "NPY", str(stored.dtype), values))


def _picture_facts(name: str, data: bytearray, channels: int, scale: Scale) -> ImageFacts:
    """Return what an image file holds."""
    decoded = partial(decode_bytes, name, data, channels=channels, scale=scale)
    try:
        with quiet_pillow, open_image(data) as image:
            mode, form = image.mode, image.format or "unknown"
            stored = image.height, image.width
            frames = _frames(data, image)
            large = stored[0] * stored[1] > LARGE
            turn = 1 if large and form == "PNG" else orientation(image)  # of a PNG it is known after decoding
    except (OSError, ValueError, SyntaxError):
        # bands that Pillow does not know, or no image: the decoder's word counts
        pixels = decoded()
        return _found(name, data, _looked(pixels), _size(pixels), _Stored(f"{channels} bands", "TIFF", "unknown"))
    if not large:
        pixels = decoded()
        size, looked = _size(pixels), _looked(pixels)
    else:
        with _one_large:
            looked, turn = _large(decoded, data, channels, (mode, form, turn))
        size = stored[::-1] if turn >= 5 else stored
    depth, values = _depth(data, mode)
    return _found(name, data, looked, size, _Stored(mode, form, depth, values, turn > 1), frames=frames)


def _found(
    name: str, data: bytearray, looked: _Looked, size: tuple[int, int], stored: _Stored, *, frames: int = 1
) -> ImageFacts:
    """Return the facts of a readable image."""
    digest = hashlib.blake2b(data, digest_size=16).digest()
    return ImageFacts(
        name,
        size=size,
        **stored._asdict(),
        **looked._asdict(),
        trouble="truncated" if ends_early(data) else "",
        stored=len(data),
        digest=digest,
        frames=frames,
    )


def _size(pixels: Tensor) -> tuple[int, int]:
    return int(pixels.shape[-2]), int(pixels.shape[-1])


def _looked(pixels: Tensor) -> _Looked:
    """Look at pixels [C, H, W]."""
    return _Looked(*moments(pixels), signature(pixels), _is_grey(pixels))


def _is_grey(pixels: Tensor) -> bool:
    """Return whether the colours of all pixels looked at are one: uint8 [3, H, W]."""
    if pixels.shape[0] != 3:
        return False
    step = max(1, math.isqrt(pixels[0].numel() // LOOKED_AT))
    some = pixels[:, ::step, ::step]
    return bool((some.amax(0) - some.amin(0)).max() <= GREY_APART)


def _frames(data: bytearray, image: Image.Image) -> int:
    """Return the frames of an animation or the pages of a TIFF."""
    if data.startswith(PNG_MAGIC):  # the animation's chunks are left out before Pillow sees them
        at = data.find(b"acTL", 8, 1 << 16)
        return max(1, int.from_bytes(data[at + 4 : at + 8], "big")) if at > 0 else 1
    try:
        return int(getattr(image, "n_frames", 1))
    except Exception:  # damage behind the first frame, which alone is used
        return 1


def _large(
    decoded: Callable[..., Tensor], data: bytearray, channels: int, stored: tuple[str, str, int]
) -> tuple[_Looked, int]:
    """Return what a large image shows, taken with little memory, and its orientation."""
    mode, form, turn = stored
    if form == "JPEG":
        return _looked(decoded(enough=Detail(LARGE // 16, 1))), turn
    if channels not in {1, 3} or mode not in STRIPPED or _deep_png(data):
        return _looked(decoded()), image_header(data).orientation
    if form == "PNG" and (pixels := decode_large_png(data, channels)) is not None:
        return _looked(pixels), png_orientation(data)
    sums = torch.zeros(2, channels, dtype=torch.float64)
    small: list[npt.NDArray[np.uint8]] = []
    with quiet_pillow, open_image(data) as image:
        image.load()
        rows = max(1, STRIP // image.width)
        for top in range(0, image.height, rows):
            strip = image.crop((0, top, image.width, min(top + rows, image.height)))
            if image.has_transparency_data:
                front = strip.convert("RGBA")
                strip = Image.alpha_composite(Image.new("RGBA", front.size, "white"), front)
            strip = strip.convert("L" if channels == 1 else "RGB")
            values = np.asarray(strip).reshape(-1, channels)
            sums += sums_of(torch.from_numpy(np.array(values.T)))
            small.append(np.asarray(strip.resize((4 * SIDE, max(1, 4 * SIDE * strip.height // image.height)))))
        sums /= image.width * image.height
        turn = orientation(image)
    reduced = Image.fromarray(np.concatenate(small)).resize((SIDE, SIDE), Image.Resampling.BILINEAR)
    shown = np.ascontiguousarray(turned(np.asarray(reduced), turn))
    grey = channels == 3 and int((shown.max(2) - shown.min(2)).max()) <= GREY_APART
    return _Looked(tuple(sums[0].tolist()), tuple(sums[1].tolist()), of_small(shown), grey), turn


def _depth(data: bytearray, mode: str) -> tuple[str, tuple[float, float] | None]:
    """Return how deep the values are, and their range where it is not 8 bits."""
    if not mode.startswith(("I", "F")):
        return "16 bits" if _deep_png(data) or _deep_tiff(data) else DEPTHS.get(mode, "8 bits"), None
    with quiet_pillow, open_image(data) as image:
        found: Any = np.asarray(image)
    return DEPTHS.get(mode, "16 bits"), (float(found.min()), float(found.max()))


def _deep_tiff(data: bytearray) -> bool:
    """Return whether these bytes are a TIFF of more than 8 bits, whose colours Pillow calls 8 bits."""
    if not data.startswith(MAGIC) or not pillow_reads(data):
        return False
    with quiet_pillow, open_image(data) as image:
        return depth_of(image) > 8


def _deep_png(data: bytearray) -> bool:
    """Return whether these bytes are a PNG of 16 bits, whose colours Pillow calls 8 bits."""
    return data.startswith(PNG_MAGIC) and data[24] == 16
