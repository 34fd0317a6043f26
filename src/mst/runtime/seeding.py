"""Random numbers without global state: each seed is a hash of the run's seed and of what the draw is for.

The same (seed, epoch, sample position) gives the same draw on every machine, with any number of workers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from mst.errors import UsageError

if TYPE_CHECKING:
    import torch

_GAMMA, FIRST_FACTOR, SECOND_FACTOR = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
"""SplitMix64's constants."""


def derive_seed(*parts: int | str) -> int:
    """Return a 63-bit seed that is a pure function of `parts`."""
    text = "/".join(str(part) for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def check_seed(seed: int) -> None:
    """Refuse a seed that is out of range.

    Raises:
        UsageError: a negative number.
    """
    if seed < 0:
        raise UsageError(f"--seed {seed}: must be at least 0")


def generator(*parts: int | str, device: str = "cpu") -> torch.Generator:
    """Return a new torch generator seeded with `derive_seed(*parts)`."""
    import torch

    return torch.Generator(device=device).manual_seed(derive_seed(*parts))


def uniforms(seed: int, counters: npt.NDArray[np.int64]) -> torch.Tensor:
    """Return one uniform number in [0, 1) for each counter, float32 on the CPU, in the shape of `counters`.

    A number depends on its seed and its counter alone, so any part of a stream can be drawn by itself. The numbers are
    the upper 24 bits of SplitMix64's output number `counter` (Steele, Lea and Flood 2014, "Fast splittable
    pseudorandom number generators", figure 17).

    Args:
        seed: of the stream, from `derive_seed`.
        counters: places in the stream, not negative; any shape.
    """
    import torch

    z = counters.astype(np.uint64)  # a copy; its arithmetic is modulo 2^64
    z += np.uint64(1)
    z *= np.uint64(_GAMMA)
    z += np.uint64(seed)
    for shift, factor in ((30, FIRST_FACTOR), (27, SECOND_FACTOR)):
        z ^= z >> np.uint64(shift)
        z *= np.uint64(factor)
    z ^= z >> np.uint64(31)
    z >>= np.uint64(40)
    return torch.from_numpy(z.astype(np.float32) * np.float32(2**-24))


@contextmanager
def drawn_from(device: torch.device, *parts: int | str) -> Iterator[None]:
    """Inside, torch's global generators are seeded from `parts`; afterwards they have their former state.

    For functions that take no generator: stochastic depth, torchvision's detectors.
    """
    import torch

    seed, on_gpu = derive_seed(*parts), device.type == "cuda"
    with torch.random.fork_rng(devices=[device] if on_gpu else []):
        torch.default_generator.manual_seed(seed)
        if on_gpu:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        yield
