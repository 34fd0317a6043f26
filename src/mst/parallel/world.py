"""The processes of a run: who this one is, what they add up, and how they agree.

There are two kinds of talk. Sums of gradients and statistics run inside a step, in the order of the program, on the
devices' own backend. Agreements (a signal, an error, the end) run between steps, on a group of their own over gloo, and
all have one form: whoever has failed outside of a step can always take part in the next one and say so.

Source of the pitfalls that this avoids: docs/distributed.md.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from mst.errors import MstError, RunFailure
from mst.runtime import logging

T = TypeVar("T")
FAILED = 1
"""Place in an agreement that says whether anybody has failed."""


class Elsewhere(MstError):
    """Another process has failed, and the first one tells the user."""

    told = True


@dataclass
class World:
    """This process among those of its run; a process alone is rank 0 of 1.

    Attributes:
        rank: of this process, from 0.
        size: processes.
        local_rank: among those of its host, from 0.
        local_size: processes of its host.
        control: the group that agreements run on; None for a process alone.
        waited: seconds that this process has spent in sums and agreements, which its slowest one spends least in.
        busy: whether the others may wait for this process inside a step: then it cannot tell them of an error.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1
    control: Any = field(default=None, repr=False)
    waited: float = field(default=0.0, init=False)
    busy: bool = field(default=False, init=False)
    _said: BaseException | None = field(default=None, init=False, repr=False)

    @classmethod
    def current(cls) -> World:
        """Return the processes that this one has joined."""
        return _joined[-1]

    @property
    def first(self) -> bool:
        """Whether this process speaks and writes for all."""
        return self.rank == 0

    @property
    def name(self) -> str:
        """This process in a message."""
        return f"rank {self.rank} on {socket.gethostname()}"

    def keep_log(self, root: Path) -> None:
        """Let what this process says go to a file in a run's folder, if it is not the one that speaks."""
        if not self.first:
            logging.write_to(root / "logs" / f"rank_{self.rank}.log")

    def add(self, *values: Tensor) -> None:
        """Replace each value by its sum over all processes, the same bits on each; one collective for each type."""
        if self.size == 1:
            return
        started = time.perf_counter()
        for kind in dict.fromkeys(value.dtype for value in values):  # in one order in all processes
            own = [value for value in values if value.dtype == kind]
            flat = torch.cat([value.reshape(-1) for value in own])
            dist.all_reduce(flat)
            for value, total in zip(own, torch.split(flat, [value.numel() for value in own]), strict=True):
                value.copy_(total.view_as(value))
        self.waited += time.perf_counter() - started

    def agree(self, number: int = 0) -> int:
        """Return the largest number that any process gives; a point that all of them reach between steps.

        Raises:
            MstError: a process has failed; the first one says which and why.
        """
        if self.size == 1:
            return number
        largest, failed = self._largest(number, 0)
        if failed:
            raise self._told(None)
        return largest

    def collect(self, value: T) -> list[T]:
        """Return the values of all processes, in the order of their ranks; any object that can be pickled.

        Raises:
            MstError: a process has failed.
        """
        if self.size == 1:
            return [value]
        self.agree()
        return self._gathered(value)

    def from_first(self, act: Callable[[], T]) -> T:
        """Let the first process act, and return its result in all.

        Raises:
            Exception: what `act` raised, on the first; `Elsewhere` on the others.
        """
        result: list[Any] = [act() if self.first else None]
        if self.size > 1:
            self.agree()
            dist.broadcast_object_list(result, src=0, group=self.control)
        return result[0]  # type: ignore[no-any-return]

    def refuse_differences(self, value: object, what: str) -> None:
        """Compare a value over all processes.

        Raises:
            RunFailure: it is another one somewhere; on the first process.
        """
        found = self.collect((value, self.name))
        other = next((name for each, name in found if each != found[0][0]), None)
        if other is not None:
            self._end_together(f"{other} has other {what} than {found[0][1]}: start all processes with the same")

    def tell(self, error: BaseException) -> BaseException:
        """Tell the others that this process has failed, outside of a step; return what to raise here.

        Waits until they reach their next agreement.
        """
        if self.size == 1 or error is self._said:
            return error
        try:
            self._largest(0, FAILED)
            return self._told(error)
        except RuntimeError:  # they are gone
            return error

    @contextmanager
    def inside_step(self) -> Iterator[None]:
        """While inside, the others may wait for this process in a sum.

        Raises:
            RunFailure: another process is gone.
        """
        self.busy = True
        try:
            yield
        except RuntimeError as error:
            if self.size > 1 and is_lost(error):
                raise RunFailure("another process of this run is gone or does not answer") from error
            raise
        self.busy = False

    def _largest(self, number: int, failed: int) -> tuple[int, int]:
        values, started = torch.tensor([number, failed]), time.perf_counter()
        try:
            dist.all_reduce(values, op=dist.ReduceOp.MAX, group=self.control)
        except RuntimeError as error:
            if not is_lost(error):
                raise
            self.busy = True  # nobody is there to be told
            raise RunFailure("another process of this run is gone or does not answer") from error
        self.waited += time.perf_counter() - started
        return int(values[0]), int(values[1])

    def _gathered(self, value: T) -> list[T]:
        found: list[Any] = [None] * self.size
        dist.all_gather_object(found, value, group=self.control)
        return found

    def _told(self, error: BaseException | None) -> BaseException:
        """Exchange what has failed; return what this process raises."""
        own = None if error is None else (str(error) or type(error).__name__, getattr(error, "exit_code", 1), self.name)
        found = [each for each in self._gathered(own) if each is not None]
        if self.first and error is not None:
            self._said = error
            return error
        message, code, name = found[0]
        self._said = said = RunFailure(f"{name}: {message}") if self.first else Elsewhere(message)
        said.exit_code = code
        return said

    def _end_together(self, message: str) -> None:
        self._said = RunFailure(message) if self.first else Elsewhere(message)
        raise self._said


_joined = [World()]
"""The newest is the one that this process is in."""


def enter(world: World) -> None:
    """Make `world` what `World.current` returns."""
    _joined.append(world)


def leave() -> None:
    """Be a process alone again; without a farewell to the others, for which a failed one would wait."""
    if len(_joined) > 1:
        _joined.pop()


@contextmanager
def alone() -> Iterator[None]:
    """Inside, this process works as if it were alone: for what the first one does while the others wait."""
    _joined.append(World())
    try:
        yield
    finally:
        _joined.pop()


def is_lost(error: BaseException) -> bool:
    """Whether a collective failed because a process is gone or too late."""
    words = ("connection", "timed out", "timeout", "gloo", "nccl", "peer", "socket")
    return isinstance(error, dist.DistError) or any(word in str(error).lower() for word in words)
