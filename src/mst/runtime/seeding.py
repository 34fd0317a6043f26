"""Random numbers from names, never from global state: a seed is a hash of what it is for.

The same (seed, epoch, sample position) gives the same draw on any machine, with any number of workers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from mst.errors import UsageError

if TYPE_CHECKING:
    import torch


def derive_seed(*parts: int | str) -> int:
    """Return a 63-bit seed that is a pure function of `parts`."""
    text = "/".join(str(part) for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def check_seed(seed: int) -> None:
    """Refuse what no seed of a command may be.

    Raises:
        UsageError: a negative number.
    """
    if seed < 0:
        raise UsageError(f"--seed {seed}: must be at least 0")


def generator(*parts: int | str, device: str = "cpu") -> torch.Generator:
    """Return a new torch generator seeded with `derive_seed(*parts)`."""
    import torch

    return torch.Generator(device=device).manual_seed(derive_seed(*parts))


@contextmanager
def drawn_from(device: torch.device, *parts: int | str) -> Iterator[None]:
    """Seed torch's global generators from `parts` inside, for what takes no generator (stochastic depth, torchvision's
    detectors); afterwards they are as they were.
    """
    import torch

    seed, on_gpu = derive_seed(*parts), device.type == "cuda"
    with torch.random.fork_rng(devices=[device] if on_gpu else []):
        torch.default_generator.manual_seed(seed)
        if on_gpu:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        yield
