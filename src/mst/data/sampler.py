"""Which image comes when: pure functions of (seed, epoch, position), so any step can be reached without a history.

Every epoch is a new permutation of the images (`mst.data.order` has the order of very many, that by shards, and
weights); the images left over after its last full batch are dropped, different ones each epoch. A run may end inside an
epoch. Every process of a run takes a share of each batch, in one or more microbatches; which images a batch has, and in
which order, depends on neither.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from mst.errors import DataError, UsageError
from mst.runtime.seeding import generator


@dataclass(frozen=True)
class Share:
    """What one process of a run works on: the same positions of each batch.

    All processes work on one microbatch at the same time, so that a BatchNorm over processes sees the same images
    whatever their number. With lanes (see `mst.parallel.lanes`) each microbatch is of one process alone.

    Attributes:
        rank: of the process, from 0.
        size: number of processes; 1 = the whole batch.
        lanes: 0 = none.
    """

    rank: int = 0
    size: int = 1
    lanes: int = 0

    def microbatches(self, batch: int, accumulate: int) -> list[range]:
        """Return the positions of each of the parts that go through the networks one after the other.

        Args:
            batch: images of a step, over all processes.
            accumulate: nearly equal parts of the batch, or of each lane.

        Raises:
            UsageError: there are fewer images than parts.
        """
        if batch < max(self.size, self.lanes) * accumulate:
            among = f" on {self.size} processes" if self.size > 1 else ""
            among = f" in {self.lanes} lanes" if self.lanes else among
            raise UsageError(f"a batch of {batch} has not even an image for each of {accumulate} microbatches{among}")
        if self.lanes:
            own = divided(range(self.lanes), self.size)[self.rank]
            lanes = divided(range(batch), self.lanes)[own.start : own.stop]
            return [part for lane in lanes for part in divided(lane, accumulate)]
        return [divided(part, self.size)[self.rank] for part in divided(range(batch), accumulate)]


WHOLE = Share()
"""All of each batch."""


def divided(positions: range, parts: int) -> list[range]:
    """Return positions in nearly equal parts, in order; the first n * k // parts of n are in the first k parts."""
    n = len(positions)
    return [positions[n * k // parts : n * (k + 1) // parts] for k in range(parts)]


class Microbatch(NamedTuple):
    """Samples of a step that go through the networks together.

    Attributes:
        step: optimizer step, from 0.
        number: among the microbatches of the step that this process works on.
        positions: of its samples in the step's whole batch.
    """

    step: int
    number: int
    positions: range


def microbatches(steps: range, batch: int, accumulate: int = 1, share: Share = WHOLE) -> Iterator[Microbatch]:
    """Yield the microbatches of a share, step by step; arguments as of `Share.microbatches`.

    Raises:
        UsageError: there are fewer images than parts.
    """
    parts = list(enumerate(share.microbatches(batch, accumulate)))
    return (Microbatch(step, number, positions) for step in steps for number, positions in parts)


def steps_per_epoch(size: int, batch_size: int) -> int:
    """Return the number of full batches in `size` images.

    Raises:
        DataError: not even one.
    """
    if batch_size > size:
        raise DataError(
            f"a batch of {batch_size} images is larger than the data set ({size}): lower --train.batch-size to {size}"
            " or give more images"
        )
    return size // batch_size


def sample_order(seed: int, epoch: int, size: int, *, purpose: str = "order") -> Tensor:
    """Return the epoch's order, a permutation of 0..size-1: int64 [size]."""
    return torch.randperm(size, generator=generator(seed, purpose, epoch))


def position_of(step: int, batch_size: int, steps: int) -> tuple[int, int]:
    """Return the epoch of an optimizer step and the position in its order of the batch's first sample.

    Args:
        step: counted from 0 over the whole run.
        batch_size: global batch.
        steps: steps per epoch.
    """
    epoch, step_in_epoch = divmod(step, steps)
    return epoch, step_in_epoch * batch_size


def batch_indices(seed: int, step: int, batch_size: int, size: int) -> Tensor:
    """Return the images of one step, before any replacement of unreadable ones: int64 [batch_size]."""
    epoch, first = position_of(step, batch_size, steps_per_epoch(size, batch_size))
    return sample_order(seed, epoch, size)[first : first + batch_size]
