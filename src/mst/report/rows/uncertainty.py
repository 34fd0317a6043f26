"""Standard errors of rows and of differences between rows, from result files alone."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

from mst.report.reading import Row, is_number
from mst.runtime.answers import Answers
from mst.runtime.noise import accuracy_se, difference_se

SE, SPREAD = "_se", "_spread"
"""Endings of the standard error of a metric, and of the deviation between draws."""
SHARES = re.compile(r"(top[15](_k\d+)?(_best_on_val)?|recall_at_\d+)")
"""Metrics that are a share of the validation images: their standard error follows from the number of images."""


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
    if one is not None and other is not None and one.same_images(other) and one.images > 1:
        images, apart = one.images, (one.only(other), other.only(one))
        spread = sum(apart) - (apart[0] - apart[1]) ** 2 / images  # sum of squares about the mean difference
        return 100 * math.sqrt(spread / (images - 1) / images)
    errors = [error_of(row, metric) for row in (first, second)]
    return None if errors[0] is None or errors[1] is None else difference_se(errors[0], errors[1])


def _right(row: Row) -> Answers | None:
    """Return which of a row's images are right; None where it does not say."""
    extra = row.get("extra")
    return Answers.from_row(extra.get("right")) if isinstance(extra, Mapping) else None
