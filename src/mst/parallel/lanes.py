"""A batch in lanes whose sums have one fixed order, so that weights are bit-equal however many processes share them.

Each of 2^n lanes has consecutive images of the batch and is worked on by itself. Gradients and sums are added as a
binary tree: lanes 0 and 1, 2 and 3, then those two sums, and so on. A process has 2^m neighbouring lanes: a subtree.
Two numbers added in either order give the same bits, so who adds them does not matter.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from mst.model.pair import TeacherStudent
from mst.parallel.replicas import Replicas
from mst.parallel.world import World


class TreeSum:
    """Adds lists of tensors that come one after the other, as a binary tree over their places."""

    def __init__(self) -> None:
        self._waiting: list[tuple[int, list[Tensor]]] = []  # (level, sum of 2^level lists), higher levels first

    def add(self, values: Sequence[Tensor]) -> None:
        """Add the next list; its tensors are changed from now on."""
        level, total = 0, list(values)
        while self._waiting and self._waiting[-1][0] == level:
            before = self._waiting.pop()[1]
            torch._foreach_add_(before, total)
            level, total = level + 1, before
        self._waiting.append((level, total))

    def total(self) -> list[Tensor]:
        """Return the sum of all lists; there were 2^n.

        Raises:
            ValueError: there were not.
        """
        if len(self._waiting) != 1:
            raise ValueError("a binary tree has 2^n leaves")
        return self._waiting[0][1]


class Lanes(Replicas):
    """One pair in each process, which works on its lanes one after the other.

    Args:
        pair: student, teacher and decoder.
        world: 2^m processes.
        microbatches: of one lane.
    """

    def __init__(self, pair: TeacherStudent, world: World, *, microbatches: int = 1) -> None:
        super().__init__(pair)
        self._world, self._microbatches = world, microbatches

    def begin(self) -> None:
        """Begin a step."""
        super().begin()
        self._tree, self._done, self._names = TreeSum(), 0, list[str]()

    def end_microbatch(self, sums: Mapping[str, Tensor]) -> None:
        """Add a microbatch's sums to those of its lane; at the lane's end, add the lane to the tree."""
        super().end_microbatch(sums)
        self._done += 1
        if self._done % self._microbatches:
            return
        self._names = list(self._sums)
        own = self._parameters[0]
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in own]
        self._tree.add([*gradients, *self._sums.values()])
        for parameter in own:
            parameter.grad = None
        self._sums = {}

    def finish(self, rows: Tensor) -> dict[str, Tensor]:
        """Add over processes, as `Replicas.finish` says."""
        values = self._tree.total()
        distance = 1
        while distance < self._world.size:
            self._add_from(self._world.rank ^ distance, values)
            distance *= 2
        own = self._parameters[0]
        for parameter, gradient in zip(own, values, strict=False):
            parameter.grad = gradient
        self._world.add(rows)  # each row is of one process: zeros are added to it
        return dict(zip(self._names, values[len(own) :], strict=True))

    def _add_from(self, other: int, values: list[Tensor]) -> None:
        """Exchange values with another process; both hold the sums then."""
        mine = torch.cat([value.reshape(-1) for value in values])
        theirs = torch.empty_like(mine)
        exchange = [dist.P2POp(dist.isend, mine, other), dist.P2POp(dist.irecv, theirs, other)]
        for work in dist.batch_isend_irecv(exchange):
            work.wait()
        parts = torch.split(theirs, [value.numel() for value in values])
        torch._foreach_add_(values, [part.view_as(value) for part, value in zip(parts, values, strict=True)])
