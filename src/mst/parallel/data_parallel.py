"""Who works on a batch that several processes share: torch's DistributedDataParallel around one part of the work.

The losses are divided by the images of the whole batch, so gradients are added over processes, not averaged; then
uneven shares are exact. They are sent while the last part of the last microbatch is differentiated.
"""

from __future__ import annotations

import copy
import inspect
import time
import warnings
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from mst.model.pair import StudentInput, StudentOutput, TeacherStudent
from mst.parallel.replicas import Replicas
from mst.parallel.world import World

KNOWN = inspect.signature(DistributedDataParallel.__init__).parameters
BUFFERS = "forward_sync_buffers" if "forward_sync_buffers" in KNOWN else "broadcast_buffers"
"""The option's name since torch 2.14, and before."""


@dataclass
class Sending:
    """When the first gradients of this step were sent; an object that torch may keep, with DDP's hook."""

    since: float | None = None


class OneEach(Replicas):
    """One pair, or a part of one, in each process; gradients are added by what wraps it."""

    def __init__(self, pair: TeacherStudent, world: World) -> None:
        super().__init__(pair)
        self._world, self._last, self._sending = world, True, Sending()

    def begin_microbatch(self, *, last: bool) -> None:
        """Say that a microbatch begins, and whether it is the last one of the step."""
        self._last = last

    def finish(self, rows: Tensor) -> dict[str, Tensor]:
        """Add the sums, as `Replicas.finish` says; the gradients have been added already."""
        sums = super().finish(rows)
        self._world.add(*sums.values(), rows)
        if self._sending.since is not None:  # who is late has least of this time
            self._world.waited += time.perf_counter() - self._sending.since
        self._sending.since = None
        return sums


class DataParallel(OneEach):
    """The whole pair in each process."""

    def __init__(self, pair: TeacherStudent, world: World) -> None:
        super().__init__(pair, world)
        own_buffers: dict[str, Any] = {BUFFERS: False}  # the teacher's are the student's, BatchNorm's are shared
        self._wrapped = DistributedDataParallel(pair, gradient_as_bucket_view=True, **own_buffers)
        self._wrapped.register_comm_hook(self._sending, _added)
        # Said once by each process of kernels of one pixel, whose strides have no meaning; nothing for a user to do.
        warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")

    def __deepcopy__(self, memo: dict[int, object]) -> Replicas:
        """Return a copy that works alone."""
        return Replicas(copy.deepcopy(self.pairs[0], memo))

    def student(self, pair: TeacherStudent, inputs: Sequence[StudentInput], *, last: bool) -> StudentOutput:
        """Run the student on one part; the gradients are sent in the backward pass of the step's last one."""
        if not torch.is_grad_enabled():
            return super().student(pair, inputs, last=last)
        with nullcontext() if last and self._last else self._wrapped.no_sync():
            output: StudentOutput = self._wrapped(inputs)
        return output


def _added(state, bucket):  # type: ignore[no-untyped-def]  # torch compares annotations, which are text here
    """Add a bucket of gradients over all processes; `state` notes when its first one was ready."""
    state.since = state.since or time.perf_counter()
    work = dist.all_reduce(bucket.buffer(), async_op=True)
    assert work is not None
    return work.get_future().then(lambda done: done.value()[0])
