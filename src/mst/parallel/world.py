"""The processes of a run."""

from __future__ import annotations

from dataclasses import dataclass

import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True)
class World:
    """This process among those of its run, as torch.distributed was set up; a process alone is rank 0 of 1.

    Attributes:
        rank: of this process, from 0.
        size: processes.
    """

    rank: int = 0
    size: int = 1

    @classmethod
    def current(cls) -> World:
        """Return the processes that torch.distributed knows of."""
        if not (dist.is_available() and dist.is_initialized()):
            return cls()
        return cls(dist.get_rank(), dist.get_world_size())

    def mean(self, value: Tensor) -> Tensor:
        """Return the mean of `value` over all processes, the same on each; alone, `value` itself."""
        if self.size == 1:
            return value
        total = value.detach().clone()
        dist.all_reduce(total)
        return total / self.size
