"""What an export is measured by: the largest difference of each output, between this package and the other program."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from mst.errors import RunFailure

TOLERANCE = {"fp32": 1e-4}
"""Largest difference of an output relative to its largest number: the same sums in another order."""


@dataclass(frozen=True)
class Difference:
    """Between two tensors of one shape.

    Attributes:
        absolute: the largest.
        relative: the same as a share of the largest number that was expected.
    """

    absolute: float
    relative: float


@dataclass(frozen=True)
class Images:
    """What the difference is measured on.

    Attributes:
        pixels: normalised [n, C, H, W].
        raw: the same before normalisation, uint8 [C, h, w] of any size.
        source: where they come from, in words.
    """

    pixels: Tensor
    raw: tuple[Tensor, ...]
    source: str


@dataclass(frozen=True)
class Parity:
    """A measured export.

    Attributes:
        format: timm, onnx, ...
        type: of its numbers: fp32, fp16, int8.
        program: that gave the numbers, with its version.
        images: where the images come from.
        count: of images.
        outputs: name -> difference.
        tolerance: largest relative difference that is accepted.
    """

    format: str
    type: str
    program: str
    images: str
    count: int
    outputs: dict[str, Difference]
    tolerance: float

    @property
    def largest(self) -> float:
        """The largest relative difference of all outputs."""
        return max(difference.relative for difference in self.outputs.values())

    def to_json(self) -> dict[str, Any]:
        """Return the record as JSON types."""
        return asdict(self)


def difference(expected: Tensor, found: Tensor) -> Difference:
    """Return how far `found` is from `expected`; NaN where either is no number.

    Raises:
        RunFailure: they have different shapes.
    """
    if expected.shape != found.shape:
        raise RunFailure(f"the exported network gives {list(found.shape)} numbers, needed are {list(expected.shape)}")
    expected, found = expected.double(), found.double()
    absolute = (expected - found).abs().max()
    relative = absolute / expected.abs().max().clamp(min=torch.finfo(torch.float32).tiny)
    return Difference(float(absolute), float(relative))


def measure(
    form: str,
    program: str,
    images: Images,
    expected: Mapping[str, Tensor],
    found: Mapping[str, Tensor],
    *,
    kind: str = "fp32",
) -> Parity:
    """Compare the outputs that another program found with the expected ones.

    Args:
        form: name of the format.
        program: name and version of the program.
        images: that both saw.
        expected: name -> output of this package.
        found: name -> output of the program; these names count.
        kind: type of the exported numbers, fp32, fp16 or int8.

    Raises:
        RunFailure: a difference is above the tolerance, or no number.
    """
    tolerance = TOLERANCE[kind]
    outputs = {name: difference(expected[name], tensor) for name, tensor in found.items()}
    for name, one in outputs.items():
        if not one.relative <= tolerance:  # NaN as well
            raise RunFailure(
                f"{program} gives other {name.replace('_', ' ')} than this package: they differ by {one.relative:.2e} "
                f"of the largest, allowed are {tolerance:g} in {kind}; nothing was exported"
            )
    return Parity(form, kind, program, images.source, len(images.pixels), outputs, tolerance)
