"""Work shared out to threads that compute with few threads each.

On a CPU the threads of one operation wait for each other at its end, and small operations use one thread only; so
operations of moderate size are faster side by side.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import torch

T = TypeVar("T")


def compute_threads(count: int, threads: int, name: str) -> ThreadPoolExecutor:
    """Return as many threads, all started, with as many threads of torch each; the caller keeps its own."""
    own, all_there = torch.get_num_threads(), threading.Barrier(count)

    def begin() -> None:
        torch.set_num_threads(threads)
        torch.get_num_threads()  # torch sets up a thread once, at its first question: from the number just set
        all_there.wait()

    pool = ThreadPoolExecutor(count, thread_name_prefix=name)
    for future in [pool.submit(begin) for _ in range(count)]:
        future.result()
    torch.set_num_threads(own)  # the number for threads to come, too
    return pool


def side_by_side(function: Callable[..., T], *arguments: Sequence[Any]) -> list[T]:
    """Return list(map(function, *arguments)), called in as many threads as torch computes with, one thread each.

    For work on tensors of a CPU that needs no gradient; the modes of the calling thread do not hold in the others.
    """
    count = min(torch.get_num_threads(), *(len(column) for column in arguments))
    if count <= 1:
        return list(map(function, *arguments))
    with compute_threads(count, 1, "share") as pool:
        return list(pool.map(function, *arguments))
