"""What an ONNX file is worth: its speed, and whether images keep their nearest neighbours."""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import Tensor

from mst.export.onnx_file import run_session

TIMED = 0.5
"""Seconds that a speed is measured for, at least."""


def neighbour_agreement(expected: Tensor, found: Tensor) -> float:
    """Return for how many of the images, in percent, the nearest other one by cosine is the same in both [n, D]."""
    nearest = []
    for features in (expected, found):
        rows = torch.nn.functional.normalize(features.double(), dim=-1)
        nearest.append((rows @ rows.T).fill_diagonal_(-torch.inf).argmax(dim=1))  # [n]
    return 100 * float((nearest[0] == nearest[1]).double().mean())


def images_per_second(running: Any, images: Tensor) -> float:
    """Return how many images a session computes in a second, one at a time, in its best of at least five passes."""
    single = images[:1]
    run_session(running, single)
    best, begun, passes = float("inf"), time.perf_counter(), 0
    while passes < 5 or time.perf_counter() - begun < TIMED:
        before = time.perf_counter()
        run_session(running, single)
        best, passes = min(best, time.perf_counter() - before), passes + 1
    return 1 / best
