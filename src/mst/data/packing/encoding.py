"""One image on its way into a shard: checked by decoding it, and perhaps made smaller or encoded anew."""

from __future__ import annotations

import hashlib
import io
import re
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from PIL import Image

from mst.data.decoding import OtherChannels, UnreadableImage, decode_bytes, said
from mst.data.formats.npy import NPY_MAGIC
from mst.data.formats.tiff import depth_of, pillow_reads
from mst.data.sources import ImageSource
from mst.data.value_range import Pixels, Stored
from mst.errors import DataError
from mst.runtime.images import PNG_MAGIC, open_image, quiet_pillow

Form = Literal["jpeg", "png", "webp"]
EXTENSIONS = {
    **{"JPEG": "jpg", "MPO": "jpg", "PNG": "png", "WEBP": "webp", "TIFF": "tif", "BMP": "bmp", "GIF": "gif"},
    **{"PPM": "ppm", "AVIF": "avif", "JPEG2000": "jp2", "NPY": "npy", "QOI": "qoi", "SGI": "sgi", "PCX": "pcx"},
    **{"PSD": "psd", "DDS": "dds", "SUN": "ras", "TGA": "tga"},
}
"""Pillow's name of a format -> extension of a member."""
KEPT: dict[str, Form] = {"JPEG": "jpeg", "PNG": "png", "WEBP": "webp"}
"""Formats that a smaller copy keeps; of all others it is a PNG."""
GREY = {"1", "L", "LA", "La"}


@dataclass(frozen=True)
class Encoding:
    """What becomes of an image.

    Attributes:
        resize: pixels of the shorter side of larger images; None = as they are.
        form: to encode all images in; None = as they are.
        quality: of JPEG and WebP, 1 to 100.
    """

    resize: int | None = None
    form: Form | None = None
    quality: int = 90


class Packed(NamedTuple):
    """One image as it goes into a shard.

    Attributes:
        name: in the source.
        data: the bytes; empty where it cannot be read.
        extension: by content.
        digest: of the bytes.
        reason: why it cannot be read.
        changed: whether it was encoded anew.
        deep: whether it should have been, and is of more than 8 bits, so that it was left as it is.
    """

    name: str
    data: bytes
    extension: str
    digest: str
    reason: str = ""
    changed: bool = False
    deep: bool = False


def pack_image(images: ImageSource, position: int, encoding: Encoding) -> Packed:
    """Return an image of a source as it goes into a shard; a broken one is a fact, not an error."""
    name = images.name(position)
    try:
        return _packed(name, images.read_bytes(position), encoding)
    except UnreadableImage as problem:
        reason = problem.reason
    except OSError as problem:
        reason = problem.strerror or said(problem)
    except DataError:  # an extra is missing
        raise
    except Exception as problem:  # a decoder may stumble over damaged bytes in any way
        reason = said(problem)
    return Packed(name, b"", "", "", " ".join(reason.split()) or "unknown")


def digest_of(data: bytes | bytearray) -> str:
    """Return what is compared when a shard is read back."""
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def _packed(name: str, data: bytearray, encoding: Encoding) -> Packed:
    if not data:
        raise UnreadableImage(name, "empty file")
    if data.startswith(NPY_MAGIC):
        return Packed(name, bytes(data), "npy", digest_of(data), deep=encoding != Encoding())
    if not pillow_reads(data):  # a TIFF that is only copied, once it is known to be sound
        with suppress(OtherChannels):
            decode_bytes(name, data, scale=_Unscaled())
        return Packed(name, bytes(data), EXTENSIONS["TIFF"], digest_of(data), deep=encoding != Encoding())
    with quiet_pillow, open_image(data) as image:
        form, mode, size = image.format or "", image.mode, image.size
        deep = _is_deep(data, image)
    smaller = encoding.resize is not None and min(size) > encoding.resize
    other = encoding.form is not None and encoding.form != KEPT.get(form)
    try:
        pixels = decode_bytes(name, data, channels=1 if mode in GREY else 3, scale=_Unscaled())  # upright, over white
    except OtherChannels:
        return Packed(name, bytes(data), EXTENSIONS[form], digest_of(data), deep=smaller or other)
    if deep or not (smaller or other):
        return Packed(name, bytes(data), EXTENSIONS[form], digest_of(data), deep=deep and (smaller or other))
    values = pixels.permute(1, 2, 0).numpy()
    picture = Image.fromarray(np.ascontiguousarray(values[..., 0] if values.shape[2] == 1 else values))
    if smaller and encoding.resize is not None:
        share = encoding.resize / min(picture.size)
        sides = tuple(max(1, round(side * share)) for side in picture.size)
        picture = picture.resize((sides[0], sides[1]), Image.Resampling.LANCZOS, reducing_gap=3.0)
    target = encoding.form or KEPT.get(form, "png")
    content = _encoded(picture, target, encoding.quality)
    return Packed(name, content, "jpg" if target == "jpeg" else target, digest_of(content), changed=True)


class _Unscaled:
    """A scale for images that are only looked at for damage: what is white in them stays open."""

    def pixels(self, values: Stored, white: int | None) -> Pixels:
        """Return black of the same shape."""
        return np.zeros(values.shape, np.uint8)

    opacity = pixels


def _is_deep(data: bytearray, image: Image.Image) -> bool:
    """Return whether an image has more than 8 bits for a value, of which Pillow may give 8."""
    if image.format == "TIFF":
        return depth_of(image) > 8
    decoders = {str(tile[0]) for tile in image.tile}  # type: ignore[attr-defined]
    deep_decoder = "SGI16" in decoders or (image.format == "PPM" and _white_of_ppm(data) > 255)
    return image.mode[0] in "IF" or deep_decoder or (data.startswith(PNG_MAGIC) and data[24] == 16)


def _white_of_ppm(data: bytearray) -> int:
    """Return the largest value that a PPM's header names (netpbm's ppm(5))."""
    words = re.sub(rb"#[^\n]*", b"", bytes(data[:4096])).split(maxsplit=4)
    known = words and words[0] in {b"P2", b"P3", b"P5", b"P6"}
    return int(words[3]) if known and len(words) > 3 and words[3].isdigit() else 255


def _encoded(picture: Image.Image, form: Form, quality: int) -> bytes:
    stream = io.BytesIO()
    if form == "png":
        picture.save(stream, "PNG")
    elif form == "jpeg":
        picture.save(stream, "JPEG", quality=quality)
    else:
        picture.save(stream, "WEBP", quality=quality)
    return stream.getvalue()
