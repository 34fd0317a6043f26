"""What a set of images holds, found by opening every one: counts, sizes, depths, statistics, what cannot be read."""

from __future__ import annotations

import io
import os
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mst.data.background import read_in_threads
from mst.data.decoding import Detail, UnreadableImage, decode_bytes, decode_large_png, said
from mst.data.files.passed import PassedOver
from mst.data.formats.large import png_orientation
from mst.data.formats.npy import NPY_MAGIC
from mst.data.sources import ImageSource, Source, open_images
from mst.data.statistics import STRIP, measured_ranges, moments, sums_of
from mst.data.value_range import BY_TYPE, Range, Scale, ValueRanges
from mst.errors import DataError
from mst.runtime.images import PNG_MAGIC, image_header, open_image, orientation, quiet_pillow
from mst.runtime.memory import available_memory
from mst.runtime.names import shown

HEAVY = 1 << 24
"""Bytes of a file from which it is opened one at a time, whatever it holds."""
LARGE = 1 << 24
"""Pixels above which images are opened one at a time, in strips, and JPEGs at a part of their size."""
ROOM = 1 << 28
"""Bytes of memory that a thread may need for an image that is not large."""
AT_ONCE = 256
"""Images that wait for a thread."""
COMPOSED = {"RGBA", "LA", "PA", "La", "RGBa"}
STRIPPED = {"1", "L", "P", "RGB", "RGBX", "CMYK", "YCbCr", "LAB", "HSV"} | COMPOSED
DEPTHS = {"1": "1 bit", "I": "32 bits", "F": "32-bit float"}

OPTION = "--value-range"

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


@dataclass
class Survey:
    """What was found so far; counts only, so that a million images need little memory."""

    images: int = 0
    unreadable: list[tuple[str, str]] = field(default_factory=list)
    sizes: Counter[str] = field(default_factory=Counter)
    modes: Counter[str] = field(default_factory=Counter)
    forms: Counter[str] = field(default_factory=Counter)
    depths: Counter[str] = field(default_factory=Counter)
    values: dict[str, tuple[float, float]] = field(default_factory=dict)
    sides: tuple[int, int] | None = None
    turned: int = 0
    mean: Tensor | None = None
    square: Tensor | None = None
    names: Counter[int] = field(default_factory=Counter)
    passed: PassedOver = field(default_factory=PassedOver)

    def add(self, fact: ImageFacts) -> None:
        """Count an image."""
        self.images += 1
        self.names[hash(os.path.basename(fact.name))] += 1
        if fact.reason:
            self.unreadable.append((fact.name, fact.reason))
            return
        self.sizes[f"{fact.size[0]}x{fact.size[1]}"] += 1
        self.modes[fact.mode] += 1
        self.forms[fact.form] += 1
        self.depths[fact.depth] += 1
        self.turned += fact.turned
        self.sides = _wider(self.sides, (min(fact.size), max(fact.size)))
        if fact.values is not None:
            self.values[fact.depth] = _wider(self.values.get(fact.depth), fact.values)
        mean, square = (torch.tensor(part, dtype=torch.float64) for part in (fact.mean, fact.square))
        self.mean = mean if self.mean is None else self.mean + mean
        self.square = square if self.square is None else self.square + square

    def row(self) -> dict[str, Any]:
        """Return what was found as JSON types, see `inspect_images`."""
        readable = self.images - len(self.unreadable)
        low, high = self.sides or (None, None)
        mean, std = self._statistics(readable)
        return {
            "images": self.images,
            "readable": readable,
            "unreadable": [{"path": shown(name), "reason": reason} for name, reason in self.unreadable],
            "sizes": dict(self.sizes.most_common()),
            "shortest_side": low,
            "longest_side": high,
            "modes": dict(self.modes.most_common()),
            "formats": dict(self.forms.most_common()),
            "depths": dict(self.depths.most_common()),
            "values": {depth: list(values) for depth, values in self.values.items()},
            "turned": self.turned,
            "same_names": sum(count for count in self.names.values() if count > 1),
            "mean": mean,
            "std": std,
            "passed_over": self.passed.rows(),
        }

    def _statistics(self, count: int) -> tuple[list[float], list[float]]:
        """Return mean and standard deviation of the channels, each image with equal weight."""
        if self.mean is None or self.square is None:
            return [], []
        mean = self.mean / count
        std = (self.square / count - mean.square()).clamp(min=0).sqrt()
        return [round(value, 4) for value in mean.tolist()], [round(value, 4) for value in std.tolist()]


def inspect_images(
    paths: Source | Iterable[Source],
    *,
    channels: int = 3,
    limit: int | None = None,
    workers: int = 4,
    strict: bool = False,
    by_content: bool = False,
    value_range: Range | None = None,
    progress: Callable[[Iterator[ImageFacts], int], Iterable[ImageFacts]] | None = None,
) -> dict[str, Any]:
    """Open the images under `paths`.

    Args:
        paths: as of `mst.data.sources.index_images`; `channels`, `limit`, `strict`, `by_content` too.
        workers: threads, at most; fewer where there is little memory.
        value_range: black and white among values that are not stored in 8 bits; None = measured on a sample.
        progress: is given the facts as they come and how many there will be, and hands them on.

    Returns:
        images, readable, unreadable (list of {path, reason}), sizes ("HxW"), modes, formats, depths (counts), values
        (least and largest as stored, by depth, where it is not 8 bits), shortest and longest side in pixels, turned
        (by EXIF), same_names (images whose name another has in another folder), mean and std per channel in [0, 1]
        (over images, each with equal weight), passed_over (list of {kind, reason, count, names}), value_ranges
        (black and white by how values are stored), value_range_problem (why there is none, else empty).

    Raises:
        UsageError, DataError: as `index_images`.
    """
    images = open_images(paths, limit=limit, channels=channels, strict=strict, by_content=by_content, tell=False)
    found = Survey(passed=images.passed)
    ranges, problem = _ranges(images, channels, value_range)
    facts = _scan(images, channels, min(workers, max(1, available_memory() // ROOM)), ranges)
    for fact in facts if progress is None else progress(facts, len(images)):
        found.add(fact)
    return {**found.row(), "value_ranges": ranges.to_json(), "value_range_problem": problem}


def _ranges(images: ImageSource, channels: int, given: Range | None) -> tuple[ValueRanges, str]:
    """Return the value ranges, and why they cannot be seen."""
    known = ValueRanges(option=OPTION) if given is None else ValueRanges.given(given, OPTION)
    try:
        return measured_ranges(images, channels=channels, known=known), ""
    except DataError as problem:
        return known, str(problem)


def image_facts(images: ImageSource, position: int, channels: int = 3, scale: Scale = BY_TYPE) -> ImageFacts:
    """Open one image completely; a broken one is a fact, not an error."""
    name = images.name(position)
    try:
        with _one_large if images.size(position) > HEAVY else nullcontext():
            data = images.read_bytes(position)
            facts = _array_facts if data.startswith(NPY_MAGIC) else _picture_facts
            return facts(name, data, channels, scale)
    except UnreadableImage as problem:
        return ImageFacts(name, problem.reason)
    except OSError as problem:
        return ImageFacts(name, problem.strerror or " ".join(said(problem).split()))
    except Exception as problem:  # a decoder may stumble over damaged bytes in any way
        return ImageFacts(name, " ".join(said(problem).split()))


def _scan(images: ImageSource, channels: int, workers: int, scale: Scale) -> Iterator[ImageFacts]:
    """Open the images in threads, in order, a few hundred at a time."""
    look = partial(image_facts, images, channels=channels, scale=scale)
    return read_in_threads(look, range(len(images)), workers, ahead=AT_ONCE)


def _array_facts(name: str, data: bytearray, channels: int, scale: Scale) -> ImageFacts:
    """Return what a .npy file holds."""
    pixels = decode_bytes(name, data, channels=channels, scale=scale)  # [C, H, W]; its header has been checked
    stored = np.load(io.BytesIO(data), allow_pickle=False)
    values = None if stored.dtype == np.uint8 else (float(stored.min()), float(stored.max()))
    mean, square = moments(pixels)
    height, width = pixels.shape[-2:]
    return ImageFacts(name, "", (height, width), "array", "NPY", str(stored.dtype), values, False, mean, square)


def _picture_facts(name: str, data: bytearray, channels: int, scale: Scale) -> ImageFacts:
    """Return what an image file holds."""
    decoded = partial(decode_bytes, name, data, channels=channels, scale=scale)
    try:
        with quiet_pillow, open_image(data) as image:
            mode, form = image.mode, image.format or "unknown"
            stored = image.height, image.width
            large = stored[0] * stored[1] > LARGE
            turn = 1 if large and form == "PNG" else orientation(image)  # of a PNG it is known after decoding
    except (
        OSError,
        ValueError,
        SyntaxError,
    ):  # bands that Pillow does not know, or no image: the decoder's word counts
        pixels = decoded()
        mean, square = moments(pixels)
        shape = int(pixels.shape[-2]), int(pixels.shape[-1])
        return ImageFacts(name, "", shape, f"{channels} bands", "TIFF", "unknown", None, False, mean, square)
    if not large:
        pixels = decoded()
        size = (int(pixels.shape[-2]), int(pixels.shape[-1]))
        mean, square = moments(pixels)
    else:
        with _one_large:
            mean, square, turn = _large(decoded, data, channels, (mode, form, turn))
        size = stored[::-1] if turn >= 5 else stored
    depth, values = _depth(data, mode)
    return ImageFacts(name, "", size, mode, form, depth, values, turn > 1, mean, square)


def _large(
    decoded: Callable[..., Tensor], data: bytearray, channels: int, stored: tuple[str, str, int]
) -> tuple[tuple[float, ...], tuple[float, ...], int]:
    """Return the moments of a large image, taken with little memory, and its orientation."""
    mode, form, turn = stored
    if form == "JPEG":
        return *moments(decoded(enough=Detail(LARGE // 16, 1))), turn
    if channels not in {1, 3} or mode not in STRIPPED or _deep_png(data):
        return *moments(decoded()), image_header(data).orientation
    if form == "PNG" and (pixels := decode_large_png(data, channels)) is not None:
        return *moments(pixels), png_orientation(data)
    sums = torch.zeros(2, channels, dtype=torch.float64)
    with quiet_pillow, open_image(data) as image:
        image.load()
        rows = max(1, STRIP // image.width)
        for top in range(0, image.height, rows):
            strip = image.crop((0, top, image.width, min(top + rows, image.height)))
            if image.has_transparency_data:
                front = strip.convert("RGBA")
                strip = Image.alpha_composite(Image.new("RGBA", front.size, "white"), front)
            values = np.asarray(strip.convert("L" if channels == 1 else "RGB")).reshape(-1, channels)
            sums += sums_of(torch.from_numpy(np.array(values.T)))
        sums /= image.width * image.height
        return tuple(sums[0].tolist()), tuple(sums[1].tolist()), orientation(image)


def _depth(data: bytearray, mode: str) -> tuple[str, tuple[float, float] | None]:
    """Return how deep the values are, and their range where it is not 8 bits."""
    if not mode.startswith(("I", "F")):
        return "16 bits" if _deep_png(data) else DEPTHS.get(mode, "8 bits"), None
    with quiet_pillow, open_image(data) as image:
        found = np.asarray(image)
    return DEPTHS.get(mode, "16 bits"), (float(found.min()), float(found.max()))


def _deep_png(data: bytearray) -> bool:
    """Return whether these bytes are a PNG of 16 bits, whose colours Pillow calls 8 bits."""
    return data.startswith(PNG_MAGIC) and data[24] == 16


def _wider(one: tuple[Any, Any] | None, other: tuple[Any, Any]) -> tuple[Any, Any]:
    return other if one is None else (min(one[0], other[0]), max(one[1], other[1]))
