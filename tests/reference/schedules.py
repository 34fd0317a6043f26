"""Schedules written as a list of one value per step, the way DINO tabulates them before training.

Source: DINO (Caron et al. 2021), section 3.2 "Implementation details": linear warm-up and cosine for the learning rate,
cosine for the weight decay and the teacher's momentum, linear warm-up of the teacher's temperature.

The last step (number steps - 1) reaches the end value exactly [ours; DINO's table stops one step before it].
"""

from __future__ import annotations

import math


def cosine(start: float, end: float, steps: int) -> list[float]:
    """Return `steps` values on half a cosine: the first is `start`, the last is `end` (one step: [end])."""
    values = []
    for step in range(steps):
        progress = step / (steps - 1) if steps > 1 else 1.0
        values.append(end + (start - end) * (1.0 + math.cos(math.pi * progress)) / 2.0)
    return values


def linear(start: float, end: float, steps: int) -> list[float]:
    """Return `steps` values on a line from `start` towards `end`: value i is start + (end - start) * i / steps.

    `end` itself is not in the list: it is the first value after these steps.
    """
    return [start + (end - start) * step / steps for step in range(steps)]


def linear_warmup_cosine(peak: float, end: float, steps: int, warmup_steps: int, start: float = 0.0) -> list[float]:
    """Return `steps` values: `warmup_steps` on a line from `start`, then from `peak` on a cosine to `end`."""
    warmup_steps = min(warmup_steps, steps)
    return linear(start, peak, warmup_steps) + cosine(peak, end, steps - warmup_steps)


def linear_then_constant(start: float, end: float, steps: int, warmup_steps: int) -> list[float]:
    """Return `steps` values: `warmup_steps` on a line from `start`, then `end` (the teacher's temperature)."""
    warmup_steps = min(warmup_steps, steps)
    return linear(start, end, warmup_steps) + [end] * (steps - warmup_steps)
