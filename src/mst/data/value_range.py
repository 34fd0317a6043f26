"""From stored values to 8 bits: which value is black and which is white, one range for each type of number.

Ordinary 8-bit images need none of this. What others mean by their numbers is no property of one image: 12 bits stored
in 16, CT numbers from -1024 to 3071, floats to 255. So the range is given, or measured on a sample of the data set
(`mst.data.statistics.measured_ranges`), and holds for all its images; an image outside it is refused, never clipped.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from mst.errors import UsageError

SLACK = 0.05
"""How far floats may lie beyond their range, as a share of it: resampling and sharpening overshoot."""
DEPTHS = (8, 10, 12, 14, 16)
"""Bits that cameras and scanners give; the smallest number of them that holds the largest value is taken."""
AT_A_TIME = 1 << 22
"""Values that are turned into 8 bits at a time: on the way they take four to eight bytes each."""
FLOAT, GIVEN = "float", "given"
"""Kinds in `ValueRanges` besides NumPy's names of whole numbers: floats of any width; whatever is stored."""

Range = tuple[float, float]
Stored = npt.NDArray[Any]
Pixels = npt.NDArray[np.uint8]


class Scale(Protocol):
    """Turns stored values into 8 bits; `white` is what a file itself says that white is, None = nothing."""

    def pixels(self, values: Stored, white: int | None) -> Pixels:
        """Return colours or bands as uint8.

        Raises:
            ValueError: what is black and white among them is not known, or they lie outside.
        """

    def opacity(self, values: Stored, white: int | None) -> Pixels:
        """Return the opacity of pixels as uint8."""


@dataclass(frozen=True)
class ByType:
    """Decides for each image: whole numbers over the range of their type, floats from [0, 1] or [0, 255]."""

    def pixels(self, values: Stored, white: int | None) -> Pixels:
        """Return the pixels over the range of their type; signed and wider whole numbers than 16 bits are refused."""
        if values.dtype.kind == "f":
            low, high = values.min(), values.max()
            if not (low >= -SLACK and high <= 255):  # also when not a number
                raise ValueError(f"float pixels from {low:g} to {high:g}: only [0, 1] or [0, 255] is understood")
            return scaled(values, (0, 1 if high <= 1 + SLACK else 255))
        if values.dtype.kind == "u" and (white is not None or values.dtype.itemsize == 2):
            return scaled(values, (0, white or 65535))
        raise ValueError(
            f"{values.dtype} pixels from {values.min()} to {values.max()}: what is white among them is not known; "
            "store them as uint8 or uint16"
        )

    opacity = pixels


BY_TYPE = ByType()


@dataclass(frozen=True)
class ValueRanges:
    """The value ranges of a data set.

    Attributes:
        ranges: kind -> (black, white): NumPy's name of a type of whole numbers, `FLOAT`, or `GIVEN` alone for all
            that is not stored in 8 bits.
        option: how another range is given, for messages.
        seen: kinds that the sample of the data set has; a backbone may bring ranges of other kinds.
    """

    ranges: Mapping[str, Range] = field(default_factory=dict)
    option: str = field(default="--data.value-range", compare=False)
    seen: frozenset[str] = field(default=frozenset(), compare=False)

    @staticmethod
    def given(range_: Range, option: str = "--data.value-range") -> ValueRanges:
        """Return one range for everything that is not stored in 8 bits."""
        return ValueRanges({GIVEN: range_}, option)

    @property
    def is_given(self) -> bool:
        """Whether the range was given for everything."""
        return GIVEN in self.ranges

    @property
    def in_use(self) -> dict[str, list[float]]:
        """What a row of results says: the ranges that count for the images of this data set, as JSON types."""
        return {kind: list(found) for kind, found in self.ranges.items() if kind in self.seen or kind == GIVEN}

    def pixels(self, values: Stored, white: int | None) -> Pixels:
        """Return the pixels over their range; a range that was given counts before what a file says of itself."""
        found = self.ranges.get(GIVEN) if values.dtype != np.uint8 else None
        if found is None:
            found = (0.0, float(white)) if white is not None else self.ranges.get(kind_of(values))
        full = values.dtype.kind == "u" and found == (0, np.iinfo(values.dtype).max)
        if found is not None and full:
            return scaled(values, found)
        low, high = values.min(), values.max()
        if found is None:
            raise ValueError(
                f"{values.dtype} pixels from {span_text(low, high)}: no value range is known for numbers stored "
                f"so (none was measured): give it with {self.option} LO HI"
            )
        slack = SLACK * (found[1] - found[0]) if values.dtype.kind == "f" else 0
        if not (low >= found[0] - slack and high <= found[1] + slack):  # also when not a number
            raise ValueError(
                f"{values.dtype} pixels from {span_text(low, high)}, outside the value range {range_text(found)} of "
                f"these images: give another with {self.option} LO HI"
            )
        return scaled(values, found)

    def opacity(self, values: Stored, white: int | None) -> Pixels:
        """Return opacity over the range of the colours, or of its type where it goes beyond them."""
        try:
            return self.pixels(values, white)
        except ValueError:
            return BY_TYPE.opacity(values, white)

    def to_json(self) -> dict[str, list[float]]:
        """Return the ranges as JSON types."""
        return {kind: list(found) for kind, found in self.ranges.items()}

    @staticmethod
    def from_json(values: Any, option: str = "--data.value-range") -> ValueRanges:
        """Rebuild the record.

        Raises:
            ValueError: it is none.
        """
        if not isinstance(values, Mapping):
            raise ValueError(f"value ranges are {values!r}: must be values by name")
        for kind, found in values.items():
            fits = isinstance(found, list | tuple) and len(found) == 2
            if not fits or not all(type(end) in {int, float} and abs(end) < 1e30 for end in found):
                raise ValueError(f"the value range of {kind} is {found!r}: must be two finite numbers")
            if not found[0] < found[1]:
                raise ValueError(f"the value range of {kind} is {found!r}: the first must be below the second")
        return ValueRanges({str(kind): (float(low), float(high)) for kind, (low, high) in values.items()}, option)

    def __str__(self) -> str:
        return ", ".join(
            range_text(found) if kind == GIVEN else f"{kind} {range_text(found)}" for kind, found in self.ranges.items()
        )


@dataclass
class Meter:
    """Notes what is stored instead of turning it into pixels; the result is black.

    Attributes:
        found: kind -> (least, largest) value where a file does not say itself what white is.
    """

    found: dict[str, tuple[Any, Any]] = field(default_factory=dict)

    def pixels(self, values: Stored, white: int | None) -> Pixels:
        """Note the values.

        Raises:
            ValueError: some are not finite.
        """
        if white is None:
            low, high = values.min().item(), values.max().item()
            if not (math.isfinite(low) and math.isfinite(high)):
                raise ValueError(f"{values.dtype} pixels from {span_text(low, high)}")
            before = self.found.setdefault(kind_of(values), (low, high))
            self.found[kind_of(values)] = min(low, before[0]), max(high, before[1])
        return np.zeros(values.shape, np.uint8)

    def opacity(self, values: Stored, white: int | None) -> Pixels:
        """Note nothing."""
        del white
        return np.zeros(values.shape, np.uint8)


def eight_bits(values: Stored, white: int | None, scale: Scale, *, opacity: bool = False) -> Pixels:
    """Return values as uint8: 8 bits as they are, true as white, all else by a scale."""
    if values.dtype == np.uint8 and white is None:
        return values
    if values.dtype == np.bool_:
        return values * np.uint8(255)
    return scale.opacity(values, white) if opacity else scale.pixels(values, white)


def scaled(values: Stored, found: Range) -> Pixels:
    """Return values within a range as uint8, rounded to the nearest; those beyond it are clipped."""
    low, high = found
    if values.size > AT_A_TIME and values.ndim > 1 and len(values) > 1:
        rows = max(1, AT_A_TIME * len(values) // values.size)
        return np.concatenate([scaled(values[top : top + rows], found) for top in range(0, len(values), rows)])
    if values.dtype.kind == "u" and low == 0 and high <= 65535 and high == int(high):
        top = np.uint32(high)
        return ((values.astype(np.uint32) * np.uint32(255) + top // 2) // top).astype(np.uint8)
    if values.dtype.kind != "f" or values.dtype.itemsize < 4:
        values = values.astype(np.float64)
    grey: Stored
    if low == 0 and high == 255:
        grey = np.clip(values, 0, 255)
    else:
        grey = np.clip(values if low == 0 and high == 1 else (values - low) / (high - low), 0, 1) * 255
    rounded: Pixels = np.rint(grey).astype(np.uint8)
    return rounded


def kind_of(values: Stored) -> str:
    """Return how values are stored: `FLOAT`, or NumPy's name of their type."""
    return FLOAT if values.dtype.kind == "f" else values.dtype.name


def likely_range(kind: str, low: float, high: float) -> Range | None:
    """Return the range that values of a kind from `low` to `high` lie in, or None where nothing usual fits.

    Whole numbers of 0 and more: the smallest of `DEPTHS` that holds them, at most the type's; beyond 16 bits the
    type's, if they reach its upper three quarters. Floats: [0, 1], else [0, 255], if they reach its upper three
    quarters (numbers from -1 to 1, or reflectances to 2, would come out black).
    """
    if kind == FLOAT:
        if low >= -SLACK and high <= 1 + SLACK:
            return (0.0, 1.0)
        return (0.0, 255.0) if low >= -SLACK * high and 255 / 4 < high <= 255 else None
    most = int(np.iinfo(kind).max)
    if low < 0:
        return None
    bits = next((bits for bits in DEPTHS if high < 1 << bits), None)
    if bits is not None:
        return (0.0, float(min((1 << bits) - 1, most)))
    return (0.0, float(most)) if high > most // 4 else None


def check_range(found: Range | None, option: str = "--value-range") -> None:
    """Refuse a range that is none.

    Raises:
        UsageError: an end is not finite, or the first is not below the second.
    """
    if found is not None and not (math.isfinite(found[0]) and math.isfinite(found[1]) and found[0] < found[1]):
        raise UsageError(f"{option} {found[0]:g} {found[1]:g}: must be two finite numbers, the first below the second")


def span_text(low: Any, high: Any) -> str:
    """Write values found: whole numbers in full, floats with six digits."""
    return " to ".join(f"{end:.6g}" if isinstance(end, float | np.floating) else str(end) for end in (low, high))


def range_text(found: Range) -> str:
    """Write a range shortly."""
    return " to ".join(f"{value:.15g}" for value in found)
