"""What an ONNX file is worth: its speed, and whether images keep their nearest neighbours."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mst.export.onnx_file import run_session

PASSES = 7
"""Passes of one image that a speed is measured on, at least."""
TIMED = 0.5
"""Seconds that they take together, at least."""


@dataclass(frozen=True)
class Speed:
    """Of one image at a time.

    Attributes:
        images_per_second: median of the passes.
        slowest: images per second of the slowest pass.
        fastest: of the fastest pass.
        passes: how many were measured, after one that was not.
        threads: that computed.
    """

    images_per_second: float
    slowest: float
    fastest: float
    passes: int
    threads: int


def neighbour_agreement(expected: Tensor, found: Tensor) -> float:
    """Return for how many of the images, in percent, the nearest other one by cosine is the same in both [n, D]."""
    nearest = []
    for features in (expected, found):
        rows = torch.nn.functional.normalize(features.double(), dim=-1)
        nearest.append((rows @ rows.T).fill_diagonal_(-torch.inf).argmax(dim=1))  # [n]
    return 100 * float((nearest[0] == nearest[1]).double().mean())


def speeds(running: Mapping[str, Any], inputs: Mapping[str, Tensor], *, threads: int) -> dict[str, Speed]:
    """Return how many images a second each session computes, one at a time; the sessions take turns.

    Args:
        running: name -> session of ONNX Runtime.
        inputs: name -> one image [1, ...] as that session takes it.
        threads: of the sessions, for the record.
    """
    seconds: dict[str, list[float]] = {name: [] for name in running}
    for name, each in running.items():
        run_session(each, inputs[name])
    begun, passes = time.perf_counter(), 0
    while passes < PASSES or time.perf_counter() - begun < TIMED * len(running):
        for name, each in running.items():
            before = time.perf_counter()
            run_session(each, inputs[name])
            seconds[name].append(time.perf_counter() - before)
        passes += 1
    return {
        name: Speed(1 / statistics.median(took), 1 / max(took), 1 / min(took), passes, threads)
        for name, took in seconds.items()
    }
