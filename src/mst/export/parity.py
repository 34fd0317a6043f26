"""What an export is measured by: the largest difference of each output, between this package and the other program."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from mst.errors import RunFailure

TOLERANCE = {"fp32": 1e-4, "fp16": 1e-2, "int8": 0.3}
"""Largest difference of an output relative to its largest number.

fp32: the same sums in another order. fp16: a number is rounded by up to 2^-11 = 5e-4; some 50 roundings one after the
other (4 a block) add up as random ones to 3.5e-3, and three times that is allowed. int8: a number is rounded by up to
1/510 of its tensor's range, which outliers widen; what is allowed finds broken files, `LEAST_COSINE` finds bad ones.
"""
LEAST_COSINE = {"int8": 0.95}
"""Least mean cosine similarity of an output: cos 18 degrees, far below what images of one class have in common."""


@dataclass(frozen=True)
class Difference:
    """Between two tensors of one shape.

    Attributes:
        absolute: the largest.
        relative: the same as a share of the largest number that was expected.
        mean: the mean difference as a share of the mean size of the numbers that were expected.
        cosine: mean cosine similarity of an image's numbers, all in one row.
        least_cosine: of the image that is worst.
    """

    absolute: float
    relative: float
    mean: float
    cosine: float
    least_cosine: float


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
    tiny = torch.finfo(torch.float32).tiny
    relative = absolute / expected.abs().max().clamp(min=tiny)
    mean = (expected - found).abs().mean() / expected.abs().mean().clamp(min=tiny)
    one, other = (tensor.reshape(len(tensor), -1) for tensor in (expected, found))
    cosine = torch.nn.functional.cosine_similarity(one, other).where((one != other).any(1), 1.0)  # zeros as well
    return Difference(float(absolute), float(relative), float(mean), float(cosine.mean()), float(cosine.min()))


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
        least = LEAST_COSINE.get(kind, -1.0)
        if one.cosine < least:
            raise RunFailure(
                f"{program} gives other {name.replace('_', ' ')} than this package: their mean cosine similarity is "
                f"{one.cosine:.3f}, needed are {least:g} in {kind}; nothing was exported"
            )
    return Parity(form, kind, program, images.source, len(images.pixels), outputs, tolerance)
