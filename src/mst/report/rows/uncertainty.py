"""Standard errors of rows and of differences between rows, from result files alone."""

from __future__ import annotations

import base64
import binascii
import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from mst.report.reading import Row, is_number
from mst.runtime.noise import accuracy_se, difference_se

SE, SPREAD = "_se", "_spread"
"""Endings of the standard error of a metric, and of the deviation between draws."""
SHARES = re.compile(r"(top[15](_k\d+)?(_best_on_val)?|recall_at_\d+)")
"""Metrics that are a share of the validation images: their standard error follows from the number of images."""
MOST = 1 << 24
"""Images of a row that can be compared in pairs, at most: more is damage."""


def error_of(row: Row | None, metric: str) -> float | None:
    """Return the standard error of a metric in percent points: as stated, else from counts; None = unknown."""
    metrics = row.get("metrics") if row else None
    if not row or not isinstance(metrics, Mapping):
        return None
    stated, value = metrics.get(f"{metric}{SE}"), metrics.get(metric)
    if is_number(stated):
        return float(stated) if stated >= 0 else None
    extra = row.get("extra")
    images = extra.get("val_images") if isinstance(extra, Mapping) else None
    if not SHARES.fullmatch(metric) or not is_number(value) or not is_number(images) or images < 1:
        return None
    return accuracy_se(float(value), int(images)) if 0 <= value <= 100 else None


def error_of_difference(first: Row | None, second: Row | None, metric: str) -> float | None:
    """Return the standard error of the difference of two rows; in pairs where both say which images are right."""
    if first is None or second is None:
        return None
    if first is second:
        return 0.0
    one, other = (_right(row) if metric == "top1" else None for row in (first, second))
    if one is not None and other is not None and one[0] == other[0] and len(one[1]) == len(other[1]) > 1:
        difference = one[1].astype(float) - other[1].astype(float)
        return float(100 * difference.std(ddof=1) / math.sqrt(len(difference)))
    errors = [error_of(row, metric) for row in (first, second)]
    return None if errors[0] is None or errors[1] is None else difference_se(errors[0], errors[1])


def _right(row: Row) -> tuple[str, npt.NDArray[np.uint8]] | None:
    """Return the digest of a row's images and which of them are right [n]; None where it does not say."""
    extra = row.get("extra")
    kept: Any = extra.get("right") if isinstance(extra, Mapping) else None
    if not isinstance(kept, Mapping):
        return None
    images, names, bits = (kept.get(key) for key in ("images", "names", "bits"))
    if type(images) is not int or not 0 < images < MOST or not isinstance(names, str) or not isinstance(bits, str):
        return None
    try:
        packed = np.frombuffer(base64.b64decode(bits, validate=True), dtype=np.uint8)
    except (binascii.Error, ValueError):
        return None
    return (names, np.unpackbits(packed)[:images]) if len(packed) == -(-images // 8) else None
