"""What a set of images holds, found by opening every one: counts, sizes, depths, statistics, what cannot be read."""

from __future__ import annotations

import os
import tempfile
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mst.data.background import read_in_threads
from mst.data.files.passed import PassedOver
from mst.data.inspection.detail import detail_checker
from mst.data.inspection.facts import ImageFacts, image_facts
from mst.data.inspection.findings import Findings, find, kind_of
from mst.data.inspection.places import PlaceNotes
from mst.data.inspection.signature import LENGTH
from mst.data.order.room import fetch_soon
from mst.data.sources import ImageSource, Source, open_images
from mst.data.sources.mixed import MixedImages
from mst.data.statistics import measured_ranges
from mst.data.value_range import Range, Scale, ValueRanges
from mst.errors import DataError
from mst.runtime.memory import available_memory
from mst.runtime.names import shown

__all__ = ["ImageFacts", "Inspected", "Survey", "image_facts", "inspect_images", "look_through"]

ROOM = 1 << 28
"""Bytes of memory that a thread may need for an image that is not large."""
AT_ONCE = 256
"""Images that wait for a thread."""
OPTION = "--value-range"


SHAPES = ("taller than 2:1", "tall, to 2:1", "tall, to 4:3", "square", "wide, to 4:3", "wide, to 2:1", "wider than 2:1")
"""Shapes of images, from tall (H > W) to wide (W > H)."""
_EDGES = (32, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 2048, 4096)
SIDES = (f"below {_EDGES[0]}", *(f"{a} to {b - 1}" for a, b in pairwise(_EDGES)), f"{_EDGES[-1]} and more")
"""Ranges of the shorter side in pixels."""


def shape_of(size: tuple[int, int]) -> str:
    """Return which of `SHAPES` an image of (H, W) has; square is within 1 %."""
    height, width = size
    longer, shorter = max(height, width), min(height, width)
    if longer <= 1.01 * shorter:
        return SHAPES[3]
    step = 1 if longer * 3 <= shorter * 4 * 1.005 else 2 if longer <= 2.015 * shorter else 3
    return SHAPES[3 + step if width > height else 3 - step]


def side_of(side: int) -> str:
    """Return which of `SIDES` a shorter side lies in."""
    return SIDES[bisect_right(_EDGES, side)]


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
    shapes: Counter[str] = field(default_factory=Counter)
    shorter: Counter[str] = field(default_factory=Counter)
    troubles: Counter[str] = field(default_factory=Counter)
    cut: list[str] = field(default_factory=list)
    stored: int = 0
    moving: int = 0

    def add(self, fact: ImageFacts) -> None:
        """Count an image."""
        self.images += 1
        self.names[hash(os.path.basename(fact.name))] += 1
        self.stored += fact.stored
        if fact.reason:
            self.troubles[fact.trouble] += 1
            self.unreadable.append((fact.name, fact.reason))
            return
        if fact.trouble:
            self.cut.append(fact.name)
        self.moving += fact.frames > 1
        self.shapes[shape_of(fact.size)] += 1
        self.shorter[side_of(min(fact.size))] += 1
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
            "bytes": self.stored,
            "unreadable_kinds": dict(self.troubles.most_common()),
            "truncated": [shown(name) for name in self.cut],
            "moving": self.moving,
            "shapes": {name: self.shapes[name] for name in SHAPES if self.shapes[name]},
            "shorter_sides": {name: self.shorter[name] for name in SIDES if self.shorter[name]},
        }

    def _statistics(self, count: int) -> tuple[list[float], list[float]]:
        """Return mean and standard deviation of the channels, each image with equal weight."""
        if self.mean is None or self.square is None:
            return [], []
        mean = self.mean / count
        std = (self.square / count - mean.square()).clamp(min=0).sqrt()
        return [round(value, 4) for value in mean.tolist()], [round(value, 4) for value in std.tolist()]


@dataclass
class Inspected:
    """What `look_through` found.

    Attributes:
        images: all of them.
        row: as `inspect_images` returns it.
        findings: by position in `images`.
        channels: of the images.
        scale: of values that are not stored in 8 bits.
        looked_at: how many were opened; fewer than there are where it was stopped.
    """

    images: ImageSource
    row: dict[str, Any]
    findings: Findings
    channels: int
    scale: Scale
    looked_at: int


Progress = Callable[[Iterator[ImageFacts], int], Iterable[ImageFacts]]


def inspect_images(paths: Source | Iterable[Source], **options: Any) -> dict[str, Any]:
    """Open the images under `paths`.

    Args:
        paths, options: as of `look_through`.

    Returns:
        images, readable, unreadable (list of {path, reason}), unreadable_kinds (counts), truncated (readable, but the
        end is missing), bytes, sizes ("HxW"), shapes, shorter_sides, modes, formats, depths (counts), values (least and
        largest as stored, by depth, where it is not 8 bits), shortest and longest side in pixels, turned (by EXIF),
        moving (animations and files of several pages), same_names (images whose name another has in another folder),
        mean and std per channel in [0, 1] (over images, each with equal weight), passed_over (list of {kind, reason,
        count, names}), value_ranges (black and white by how values are stored), value_range_problem (why there is none,
        else empty), and what `Findings.row` returns.

    Raises:
        UsageError, DataError: as `index_images`.
    """
    return look_through(paths, **options).row


def look_through(
    paths: Source | Iterable[Source],
    *,
    validation: Iterable[Source] = (),
    channels: int = 3,
    limit: int | None = None,
    workers: int = 4,
    strict: bool = False,
    by_content: bool = False,
    value_range: Range | None = None,
    progress: Progress | None = None,
) -> Inspected:
    """Open the images under `paths`, see `inspect_images`.

    Args:
        paths: as of `mst.data.sources.open_images`; `channels`, `limit`, `strict`, `by_content` too.
        validation: images of another part, which are compared with those of `paths`.
        workers: threads, at most; fewer where there is little memory.
        value_range: black and white among values that are not stored in 8 bits; None = measured on a sample.
        progress: is given the facts as they come and how many there will be, and hands them on, or ends.

    Raises:
        UsageError, DataError: as `open_images`.
    """
    sources = [paths] if isinstance(paths, str | bytes | os.PathLike) else list(paths)
    opened = partial(open_images, limit=limit, channels=channels, strict=strict, by_content=by_content, tell=False)
    images, others = opened(sources), list(validation)
    train = len(images)
    if others:
        images = MixedImages.of([images, opened(others)])
    fetch_soon(images)
    survey, notes = Survey(passed=images.passed), PlaceNotes()
    ranges, problem = _ranges(images, channels, value_range)
    facts = _scan(images, channels, min(workers, max(1, available_memory() // ROOM)), ranges)
    digests, kinds = bytearray(), bytearray()
    with tempfile.TemporaryFile() as signatures:
        for fact in facts if progress is None else progress(facts, len(images)):
            survey.add(fact)
            notes.add(fact.name)
            digests += fact.digest or bytes(16)
            kinds.append(kind_of(fact))
            signatures.write(fact.signature or bytes(LENGTH))
        signatures.flush()
        places = notes.places([Path(os.fsdecode(source)) for source in sources] if not others else [])
        if others:
            places = places.with_parts(train)
        places = places.with_labels(images)
        findings = find(
            digests, kinds, _mapped(signatures, len(kinds)), places, detail_checker(images, channels, ranges)
        )
    row = {**survey.row(), "value_ranges": ranges.to_json(), "value_range_problem": problem}
    row |= findings.row(images.name)
    return Inspected(images, row, findings, channels, ranges, len(kinds))


def _mapped(file: Any, count: int) -> Any:
    """Return signatures in a file, uint8 [n, LENGTH], read as they are asked for."""
    if not count:
        return np.zeros((0, LENGTH), np.uint8)
    return np.memmap(file, np.uint8, "r", shape=(count, LENGTH))


def _ranges(images: ImageSource, channels: int, given: Range | None) -> tuple[ValueRanges, str]:
    """Return the value ranges, and why they cannot be seen."""
    known = ValueRanges(option=OPTION) if given is None else ValueRanges.given(given, OPTION)
    try:
        return measured_ranges(images, channels=channels, known=known), ""
    except DataError as problem:
        return known, str(problem)


def _scan(images: ImageSource, channels: int, workers: int, scale: Scale) -> Iterator[ImageFacts]:
    """Open the images in threads, in order, a few hundred at a time."""
    look = partial(image_facts, images, channels=channels, scale=scale)
    return read_in_threads(look, range(len(images)), workers, ahead=AT_ONCE)


def _wider(one: tuple[Any, Any] | None, other: tuple[Any, Any]) -> tuple[Any, Any]:
    return other if one is None else (min(one[0], other[0]), max(one[1], other[1]))
