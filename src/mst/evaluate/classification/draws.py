"""An evaluation repeated with other draws of labels, held-out parts and initial weights: mean and spread.

Draw 0 has the seed itself, so that it is the evaluation without repetitions; draw i has derive_seed(seed, i, purpose).
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from dataclasses import replace

from mst.runtime.seeding import derive_seed
from mst.runtime.storage.results import Result


def draw_seed(seed: int, number: int) -> int:
    """Return the seed of one draw."""
    return seed if number == 0 else derive_seed(seed, number, "evaluation draw")


def repeated(evaluate: Callable[[int], Result], seed: int, count: int) -> Result:
    """Return the mean of an evaluation over `count` draws.

    Returns:
        The result of draw 0 with every metric `X` replaced by its mean over the draws; `X_spread` is the sample
        deviation of the draws; `X_se` covers both the choice of validation images and the draws:
        sqrt(mean of the draws' squared standard errors + spread^2 / count). `extra["draws"]` has a row for each.
        What else `extra` says (errors, chosen rates) is that of draw 0.
    """
    results = [evaluate(draw_seed(seed, number)) for number in range(count)]
    first = results[0]
    metrics: dict[str, float] = {}
    for name in first.metrics:
        values = [result.metrics[name] for result in results if name in result.metrics]
        if name.endswith("_se") or len(values) < count:
            continue
        spread = statistics.stdev(values)
        metrics[name], metrics[f"{name}_spread"] = round(statistics.fmean(values), 6), round(spread, 6)
        errors = [result.metrics[f"{name}_se"] for result in results if f"{name}_se" in result.metrics]
        if len(errors) == count:
            images = statistics.fmean(error**2 for error in errors)
            metrics[f"{name}_se"] = round(math.sqrt(images + spread**2 / count), 6)
    extra = {name: value for name, value in first.extra.items() if name != "right"}  # of one draw: not of the mean
    extra["draws"] = [{"seed": result.seed, "metrics": result.metrics} for result in results]
    return replace(first, metrics=metrics, protocol={**first.protocol, "seeds": count}, extra=extra)
