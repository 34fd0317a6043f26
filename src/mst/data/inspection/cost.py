"""How long it takes to read and decode the images, measured on some of them."""

from __future__ import annotations

import os
import statistics
import time
from typing import Any

from mst.data.decoding import UnreadableImage, read_image
from mst.data.sources import ImageSource, even_positions
from mst.data.value_range import Scale

MOST, SECONDS = 64, 3.0
"""Images that are decoded, and the time after which no more are."""


def decoding_cost(images: ImageSource, channels: int, scale: Scale) -> dict[str, Any] | None:
    """Read and decode some images, one after the other; None where none can be.

    Returns:
        measured (images), milliseconds (mean of one on a core), cores (that this process may use), images_per_second
        (on all of them), per_core (on one), epoch_seconds (of all images), median_shorter_side (of the measured).
    """
    sides: list[int] = []
    seconds = 0.0
    for position in even_positions(len(images), MOST).tolist():
        started = time.perf_counter()
        try:
            pixels = read_image(images, position, channels=channels, scale=scale)
        except UnreadableImage:
            continue
        seconds += time.perf_counter() - started
        sides.append(int(min(pixels.shape[1:])))
        if seconds > SECONDS:
            break
    if not sides:
        return None
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    each = seconds / len(sides)
    return {
        "measured": len(sides),
        "milliseconds": round(1000 * each, 3),
        "cores": cores,
        "images_per_second": round(cores / each, 1),
        "per_core": round(1 / each, 1),
        "epoch_seconds": round(each * len(images) / cores, 1),
        "median_shorter_side": int(statistics.median(sides)),
    }
