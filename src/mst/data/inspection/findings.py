"""What shows only when all images are seen together: duplicates, blank and grey ones, leaks between parts, classes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from mst.data.inspection.facts import ImageFacts
from mst.data.inspection.near import Confirm, near_images
from mst.data.inspection.places import Places, counts
from mst.data.inspection.signature import Signatures
from mst.runtime.names import shown

READABLE, GREY, BLANK = 1, 2, 4
"""Bits of what is known of an image."""
NEARLY_BLANK = 2.0
"""Levels of 8 bits: an image whose pixels have a smaller standard deviation is called blank."""

Group = list[int]


@dataclass(frozen=True)
class Findings:
    """Findings by position.

    Attributes:
        places: where the images belong.
        readable: how many could be read, masks not counted.
        grey: how many of them have no colours.
        blank: those whose pixels are all, or nearly, the same.
        exact: groups of files with the same bytes.
        near: groups of others that show nearly the same; of each exact group its first is looked at.
        cut: whether near ones may be missing, because too many are alike.
    """

    places: Places
    readable: int
    grey: int
    blank: Group
    exact: list[Group]
    near: list[Group]
    cut: bool

    def leaks(self, groups: Iterable[Group]) -> list[Group]:
        """Return, of groups that lie in several parts, the first image of each part."""
        named = np.array([bool(name) for name in self.places.parts])
        return _one_of_each(groups, np.where(named[self.places.part], self.places.part, -1))

    def conflicts(self) -> list[Group]:
        """Return, of groups of duplicates that have several classes, the first image of each class."""
        return _one_of_each([*self.exact, *self.near], self.places.label) if self.places.classes else []

    def row(self, name: Callable[[int], str]) -> dict[str, Any]:
        """Return the findings as JSON types.

        Args:
            name: gives an image's name by position.

        Returns:
            pictures (readable, without masks), grey, blank (names), exact_duplicates and near_duplicates ({images: how
            many could go, groups: names}), near_duplicates_cut, parts and classes (counts), leaks ({exact, near}:
            groups of names, one of each part), conflicts (the same image in several classes), mask_folders, and
            image_folder (to train on; "" = what was looked at).
        """

        def named(groups: Iterable[Group]) -> list[list[str]]:
            return [[shown(name(position)) for position in group] for group in groups]

        def duplicates(groups: Sequence[Group]) -> dict[str, Any]:
            return {"images": sum(len(group) - 1 for group in groups), "groups": named(groups)}

        places = self.places
        numbers = np.bincount(places.part[~places.masks], minlength=len(places.parts)).tolist()
        parts = dict(zip(places.parts, numbers, strict=True)) if len(places.parts) > 1 else {}
        return {
            "pictures": self.readable,
            "grey": self.grey,
            "blank": [shown(name(position)) for position in self.blank],
            "exact_duplicates": duplicates(self.exact),
            "near_duplicates": duplicates(self.near),
            "near_duplicates_cut": self.cut,
            "parts": {part or "neither": count for part, count in parts.items() if count},
            "classes": counts(places.label, places.classes),
            "leaks": {"exact": named(self.leaks(self.exact)), "near": named(self.leaks(self.near))},
            "conflicts": named(self.conflicts()),
            "mask_folders": list(places.mask_folders),
            "image_folder": places.image_folder,
        }


def kind_of(fact: ImageFacts) -> int:
    """Return the bits of an image."""
    if fact.reason:
        return 0
    return READABLE | GREY * fact.grey | BLANK * (fact.deviation < NEARLY_BLANK)


def find(
    digests: bytes | bytearray,
    kinds: bytes | bytearray,
    signatures: Signatures,
    places: Places,
    confirm: Confirm | None = None,
) -> Findings:
    """Find what shows only in all images.

    Args:
        digests: 16 bytes of each image.
        kinds: a byte of bits of each.
        signatures: uint8 [n, LENGTH].
        places: where the images belong; those in folders of masks are left out.
        confirm: see `near_images`.
    """
    kind = np.frombuffer(kinds, np.uint8)
    counted = ((kind & READABLE) > 0) & ~places.masks
    blank = counted & ((kind & BLANK) > 0)
    positions = np.flatnonzero(counted)
    exact, firsts = _same(np.frombuffer(digests, "V16")[positions], positions)
    near = near_images(signatures, firsts[~blank[firsts]], confirm)
    grey = int((counted & ((kind & GREY) > 0)).sum())
    return Findings(places, len(positions), grey, np.flatnonzero(blank).tolist(), exact, near.groups, near.cut)


def _same(digests: npt.NDArray[np.void], positions: npt.NDArray[np.int64]) -> tuple[list[Group], npt.NDArray[np.int64]]:
    """Return the groups of equal digests, and the first image of each digest, ascending."""
    if not len(positions):
        return [], positions
    halves = np.ascontiguousarray(digests).view(np.uint64).reshape(-1, 2)  # [n, 2]
    order = np.lexsort((positions, halves[:, 1], halves[:, 0]))
    new = np.ones(len(order), bool)
    new[1:] = (halves[order][1:] != halves[order][:-1]).any(1)
    starts = np.flatnonzero(new)
    lengths = np.diff(np.append(starts, len(order)))
    several = zip(starts[lengths > 1].tolist(), lengths[lengths > 1].tolist(), strict=True)
    groups = sorted(positions[order[first : first + length]].tolist() for first, length in several)
    return groups, np.sort(positions[order[starts]])


def _one_of_each(groups: Iterable[Group], kind: npt.NDArray[Any]) -> list[Group]:
    """Return the first image of each kind of every group that has several kinds; negative ones are none."""
    found: list[Group] = []
    for group in groups:
        firsts: dict[int, int] = {}
        for position in group:
            if kind[position] >= 0:
                firsts.setdefault(int(kind[position]), position)
        if len(firsts) > 1:
            found.append(list(firsts.values()))
    return found
