"""Who works on a batch inside one process: replicas of a pair that share its weights, each in a thread of its own.

On a CPU the threads of one operation wait for each other at its end, thousands of times a step, and a product of
moderate size is slower on two threads than two such products on one each. So a batch is divided instead, as data
parallel training over processes does it. The replicas' gradients are added in a fixed order; what is drawn at random is
drawn for the whole batch. So the result is that of one replica up to the rounding of sums.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from itertools import chain, pairwise
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from mst.model.pair import StudentInput, StudentOutput, TeacherStudent
from mst.runtime.threads import compute_threads

T = TypeVar("T")


class Replicas:
    """Some replicas of a pair, the first of which is the pair itself.

    Args:
        pair: on the CPU, if there is more than one replica.
        count: how many.
        threads: of each one's operations.

    Attributes:
        shards: how the parts that each process holds of the networks are saved; None where they are whole.
        told: called with its images in the thread of each share before the work begins, where somebody watches.
    """

    shards: Any = None
    told: Callable[[slice], None] | None = None

    def __init__(self, pair: TeacherStudent, count: int = 1, *, threads: int = 1) -> None:
        self._pairs = [pair, *(_replica(pair) for _ in range(count - 1))]
        # Listed once: walking the modules costs milliseconds, which is a share of a small network's step.
        self._parameters = [[p for p in each.parameters() if p.requires_grad] for each in self._pairs]
        self._per_replica, self._sums = threads, dict[str, Tensor]()
        self._threads = compute_threads(count, threads, "replica") if count > 1 else None

    def __deepcopy__(self, memo: dict[int, object]) -> Replicas:
        """Return as many replicas of a copy of the pair, with threads of their own."""
        return Replicas(copy.deepcopy(self._pairs[0], memo), len(self._pairs), threads=self._per_replica)

    def __len__(self) -> int:
        return len(self._pairs)

    @property
    def divides(self) -> bool:
        """Whether each process holds a part of the networks."""
        return self.shards is not None

    @property
    def pairs(self) -> Sequence[TeacherStudent]:
        """All replicas; the first is the pair itself."""
        return self._pairs

    @property
    def whole(self) -> TeacherStudent:
        """The pair with all of its tensors, to look at or to save: where it is divided, as it was collected."""
        return self._pairs[0]

    def run(self, task: Callable[[TeacherStudent, slice], T], images: int) -> list[T]:
        """Return task(pair, images of its share) of all replicas, in order; they run at the same time.

        The caller's autocast and gradient modes hold in them too. A task draws nothing from torch's global generator.

        Args:
            task: raises what this method then raises.
            images: of the batch; with fewer than replicas, some have nothing to do.
        """
        if self.told is not None:
            task = _telling(self.told, task)
        count = min(len(self), images)
        if self._threads is None or count == 1:
            return [task(self._pairs[0], slice(0, images))]
        bounds = [images * index // count for index in range(count + 1)]
        inherited = _Inherited()
        futures = [
            self._threads.submit(inherited.call, task, pair, slice(*ends))
            for pair, ends in zip(self._pairs, pairwise(bounds), strict=False)
        ]
        return [future.result() for future in futures]

    def student(self, pair: TeacherStudent, inputs: Sequence[StudentInput], *, last: bool) -> StudentOutput:
        """Run the student of one replica on one part of a share; `last` says that it is the share's last part."""
        output: StudentOutput = pair(inputs)
        return output

    def begin(self) -> None:
        """Begin a step: there are no gradients and no sums."""
        for parameter in chain.from_iterable(self._parameters):
            parameter.grad = None
        self._sums = {}

    def begin_microbatch(self, *, last: bool) -> None:
        """Say that a microbatch begins, and whether it is the last one of the step."""

    def end_microbatch(self, sums: Mapping[str, Tensor]) -> None:
        """Add a microbatch's sums, by name, to those of the step."""
        for name, value in sums.items():
            self._sums[name] = self._sums[name] + value if name in self._sums else value

    def finish(self, rows: Tensor) -> dict[str, Tensor]:
        """Leave the gradients of the whole batch in the pair; return the sums over it.

        Args:
            rows: of the whole batch [B, D], zero but for those of this process; they are filled.
        """
        self._gather_gradients()
        return self._sums

    def norms(self, gradients: Sequence[Tensor]) -> Tensor:
        """Return the L2 norm of each gradient [P], float32."""
        return l2_norms(gradients)

    def collect(self) -> None:
        """Bring what is divided over processes to the first one; called in all of them."""

    def divided(self, value: Tensor, like: Tensor) -> Tensor:
        """Return what this process holds of a whole tensor that is to replace one like `like`."""
        return value

    def _gather_gradients(self) -> None:
        """Add the replicas' gradients to those of the pair, in the order of the replicas, and forget them."""
        own, *others = self._parameters
        for parameters in others:
            sums: list[tuple[Tensor, Tensor]] = []
            for mine, other in zip(own, parameters, strict=True):
                if mine.grad is not None and other.grad is not None:
                    sums.append((mine.grad, other.grad))
                elif other.grad is not None:
                    mine.grad = other.grad
                other.grad = None
            if sums:
                torch._foreach_add_(*map(list, zip(*sums, strict=True)))


def l2_norms(tensors: Sequence[Tensor]) -> Tensor:
    """Return the L2 norm of each tensor [P], float32."""
    return torch.stack([norm.float() for norm in torch._foreach_norm(list(tensors))])


class _Inherited:
    """What a thread does not inherit from the one that starts it."""

    def __init__(self) -> None:
        self.type, self.autocast = torch.get_autocast_dtype("cpu"), torch.is_autocast_enabled("cpu")
        self.gradients = torch.is_grad_enabled()

    def call(self, task: Callable[[TeacherStudent, slice], T], pair: TeacherStudent, share: slice) -> T:
        """Return task(pair, share)."""
        with torch.set_grad_enabled(self.gradients), torch.autocast("cpu", self.type, enabled=self.autocast):
            return task(pair, share)


def _telling(
    told: Callable[[slice], None], task: Callable[[TeacherStudent, slice], T]
) -> Callable[[TeacherStudent, slice], T]:
    """Return a task that says first which images it works on."""

    def tell_and_do(pair: TeacherStudent, share: slice) -> T:
        told(share)
        return task(pair, share)

    return tell_and_do


def _replica(pair: TeacherStudent) -> TeacherStudent:
    """Return a pair on the same memory, whose student and decoder collect their own gradients."""
    shared: dict[int, object] = {id(pair.teacher): pair.teacher}
    for buffer in pair.buffers():
        shared[id(buffer)] = buffer
    for parameter in pair.parameters():
        shared[id(parameter)] = nn.Parameter(parameter.detach(), requires_grad=parameter.requires_grad)
    return copy.deepcopy(pair, shared)
