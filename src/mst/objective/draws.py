"""The random numbers of one step, each a function of (seed, step, position in the batch, crop, purpose).

So what is drawn for an image depends neither on how the batch is divided (accumulation, replicas, processes) nor on
the images beside it. What couples images, such as which share of them is masked, is drawn from the step alone.

Letters: B images of the whole batch, b images at hand, n crops of each.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from mst.runtime.seeding import derive_seed, uniforms

CROP_BITS, NUMBER_BITS = 10, 24
"""Places in a stream: position in the batch, then crop, then number."""


@dataclass(frozen=True)
class StepDraws:
    """Draws for some images of a batch.

    Attributes:
        seed: of the run.
        step: optimizer step, from 0.
        positions: of the images at hand in the whole batch.
        batch: B.
        crop: number of the first crop at hand among the crops of an image.
    """

    seed: int
    step: int
    positions: range
    batch: int
    crop: int = 0

    def of(self, images: slice) -> StepDraws:
        """Return the draws of some of the images at hand."""
        return replace(self, positions=self.positions[images])

    def from_crop(self, crop: int) -> StepDraws:
        """Return the draws of crop number `crop` of each image and of those after it."""
        return replace(self, crop=crop)

    def uniform(self, purpose: str, rows: int, count: int) -> Tensor:
        """Return `count` numbers in [0, 1) for each crop [n*b, count], float32, on the CPU.

        Args:
            purpose: names the stream.
            rows: n*b, crops of one image apart by b.
            count: may grow without changing the numbers before.
        """
        crops = self.crop + np.arange(rows // len(self.positions), dtype=np.int64)[:, None]  # [n, 1]
        places = (np.asarray(self.positions, dtype=np.int64) << CROP_BITS | crops).reshape(-1, 1)  # [n*b, 1]
        return uniforms(self._stream(purpose), places << NUMBER_BITS | np.arange(count, dtype=np.int64))

    def uniform_of_batch(self, purpose: str, rows: int) -> tuple[Tensor, Tensor]:
        """Return numbers for all crops of the batch and one more, and which of them belong to the crops at hand.

        Args:
            purpose: names the stream.
            rows: n*b.

        Returns:
            Numbers [n*B + 1] and positions among them, int64 [n*b].
        """
        crops = rows // len(self.positions)
        numbers = uniforms(self._stream(purpose), np.arange(crops * self.batch + 1, dtype=np.int64))
        own = torch.arange(crops)[:, None] * self.batch + torch.tensor(self.positions)  # [n, b]
        return numbers, own.flatten()

    def _stream(self, purpose: str) -> int:
        return derive_seed(self.seed, "step", self.step, purpose)


@dataclass(frozen=True)
class GeneratorDraws:
    """The same numbers taken from a torch generator, one after the other: for a batch that nobody divides."""

    generator: torch.Generator

    def uniform(self, purpose: str, rows: int, count: int) -> Tensor:
        """Return numbers in [0, 1), [rows, count], on the generator's device; `purpose` is not used."""
        return torch.rand(rows, count, generator=self.generator, device=self.generator.device)

    def uniform_of_batch(self, purpose: str, rows: int) -> tuple[Tensor, Tensor]:
        """Return numbers [rows + 1] and 0..rows-1."""
        return self.uniform(purpose, 1, rows + 1)[0], torch.arange(rows)
