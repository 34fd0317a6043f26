"""Which images of a set a classifier gets right, a bit each: rows on the same images can then be compared in pairs.

One form for all rows of results: `extra.right` is what `Answers.row` returns.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mst.runtime.noise import accuracy_se

MOST = 1 << 24
"""Images of a row, at most: more is damage."""


@dataclass(frozen=True)
class Answers:
    """Right or wrong for each of n images.

    Attributes:
        number: the bits, those of the first image the highest, as a number.
        images: n.
        names: digest of the images' names, the same wherever they lie.
    """

    number: int
    images: int
    names: str = ""

    @staticmethod
    def of(right: Iterable[bool], names: Sequence[str] = ()) -> Answers:
        """Return the record of a truth value for each image, in their order, and of the images' names."""
        flags = [bool(flag) for flag in right]
        return Answers(int("".join("1" if flag else "0" for flag in flags) or "0", 2), len(flags), _digest(names))

    @staticmethod
    def from_row(kept: object) -> Answers | None:
        """Return what `row` gave; None for anything else."""
        if not isinstance(kept, Mapping):
            return None
        images, names, bits = (kept.get(key) for key in ("images", "names", "bits"))
        if type(images) is not int or not 0 < images < MOST or not isinstance(names, str) or not isinstance(bits, str):
            return None
        try:
            packed = base64.b64decode(bits, validate=True)
        except (binascii.Error, ValueError):
            return None
        unused = 8 * len(packed) - images
        number = int.from_bytes(packed, "big")
        return Answers(number >> unused, images, names) if 0 <= unused < 8 and not number % (1 << unused) else None

    def row(self) -> dict[str, Any]:
        """Return the record as JSON types; bits as `numpy.packbits` orders them, in base64."""
        length = -(-self.images // 8)
        packed = (self.number << (8 * length - self.images)).to_bytes(length, "big")
        return {"images": self.images, "names": self.names, "bits": base64.b64encode(packed).decode()}

    @property
    def percent(self) -> float:
        """The accuracy."""
        return round(100 * self.number.bit_count() / self.images, 6)

    @property
    def se(self) -> float:
        """Its standard error in percent points."""
        return accuracy_se(self.percent, self.images)

    def only(self, other: Answers) -> int:
        """Return how many images are right here and wrong in another record of the same images."""
        return (self.number & ~other.number).bit_count()

    def same_images(self, other: Answers) -> bool:
        """Whether both are of the same images, as far as is known."""
        return (self.images, self.names) == (other.images, other.names)


def _digest(names: Sequence[str]) -> str:
    """Return a digest of the last two parts of each name; of no names, nothing."""
    ends = ["/".join(name.split("/")[-2:]) for name in names]
    return hashlib.blake2b("\0".join(ends).encode(errors="surrogateescape"), digest_size=8).hexdigest() if ends else ""
