"""Several operations at once, each on few threads, in place of one after the other on all threads.

The threads of one CPU operation wait for each other when it ends, and a small operation uses a single thread anyway. So
operations of moderate size finish sooner when they run side by side.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

import torch

T = TypeVar("T")


@contextmanager
def threads_kept() -> Iterator[None]:
    """Give the process its number of compute threads back at the end, whatever is set inside."""
    before = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(before)


def compute_threads(count: int, threads: int, name: str) -> ThreadPoolExecutor:
    """Return a pool of `count` started threads, each of which computes with `threads` threads of torch.

    The calling thread keeps the number that it had.
    """
    own, all_there = torch.get_num_threads(), threading.Barrier(count)

    def begin() -> None:
        torch.set_num_threads(threads)
        torch.get_num_threads()  # torch fixes a thread's number at its first use: here, to the one just set
        all_there.wait()

    pool = ThreadPoolExecutor(count, thread_name_prefix=name)
    for future in [pool.submit(begin) for _ in range(count)]:
        future.result()
    torch.set_num_threads(own)  # also the default of threads that start later
    return pool


def side_by_side(function: Callable[..., T], *arguments: Sequence[Any]) -> list[T]:
    """Return list(map(function, *arguments)), the calls shared out to as many threads as torch computes with.

    Each call computes on one thread. For CPU tensors without gradients: modes such as `no_grad` or autocast, set in the
    calling thread, do not hold in the others.
    """
    count = min(torch.get_num_threads(), *(len(column) for column in arguments))
    if count <= 1:
        return list(map(function, *arguments))
    with compute_threads(count, 1, "share") as pool:
        return list(pool.map(function, *arguments))
