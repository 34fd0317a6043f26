"""Which image comes when: pure functions of (seed, epoch, position), so any step can be reached without a history.

Every epoch is a new permutation of the images; the images left over after its last full batch are dropped, different
ones each epoch. A run may end inside an epoch.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mst.errors import DataError
from mst.runtime.seeding import generator


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


def sample_order(seed: int, epoch: int, size: int) -> Tensor:
    """Return the epoch's order, a permutation of 0..size-1: int64 [size]."""
    return torch.randperm(size, generator=generator(seed, "order", epoch))


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
