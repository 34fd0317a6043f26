"""How what worker processes read comes to who asked: in shared memory where there is enough, else in pipes.

torch shares a tensor's memory in /dev/shm, which containers keep at 64 MB unless told otherwise; a tensor that does not
fit ends the worker. An array goes through the pipe of the executor instead, which costs one copy on each side.
"""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import Tensor

from mst.data.reader import Chunk

SHARED = "/dev/shm"
SPARE = 4
"""So many times its own size must be free for a chunk to be shared: other workers and chunks want room too."""


def packed(chunk: Chunk, workers: int) -> Chunk:
    """Return a chunk ready to leave its worker, one of `workers`: its tensors as they are, or as arrays."""
    size = sum(tensor.nbytes for tensor in (*chunk.tensors, chunk.indices, chunk.read))
    if free_shared_memory() >= SPARE * workers * size:
        return chunk
    tensors: Any = tuple(tensor.contiguous().numpy() for tensor in chunk.tensors)
    return Chunk(tensors, chunk.indices.numpy(), chunk.read.numpy(), chunk.unreadable)  # type: ignore[arg-type]


def unpacked(chunk: Chunk) -> tuple[Chunk, bool]:
    """Return a chunk as it was before `packed`, and whether it came through a pipe."""
    parts: Any = chunk
    if isinstance(parts.indices, Tensor):
        return chunk, False
    tensors = tuple(map(torch.from_numpy, parts.tensors))
    return Chunk(tensors, torch.from_numpy(parts.indices), torch.from_numpy(parts.read), chunk.unreadable), True


def free_shared_memory() -> int:
    """Return the bytes free for shared memory; none where there is no such place."""
    try:
        found = os.statvfs(SHARED)
    except OSError:
        return 0
    return found.f_bavail * found.f_frsize
