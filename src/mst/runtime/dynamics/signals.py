"""The numbers that are watched, each with its limit: how they were chosen is in docs/dynamics.md.

Sources: what the entropies say is Caron et al. 2021 (DINO), section 5.3; RankMe is Garrido et al. 2023. Public threads
that tell of such runs: facebookresearch/dino #43, #246, #273 and #287, facebookresearch/dinov2 #407.

Letters: R rows, K prototypes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from mst.runtime import advice
from mst.runtime.dynamics.records import FIRST_STEPS, GRACE, WINDOW, Conditions, Flags, Kind, Signal
from mst.runtime.dynamics.series import Column, Series

UNIFORM, FALLING, FALLING_WINDOW = 0.8, 0.01, 0.05
"""Share of ln K above which the entropy of one image's output says little of the image; and how much lower it is than
a window before, at least, where it is still falling from its start, as with many prototypes and small batches."""
FORETOLD = 0.2
"""Nats that the student knows of the teacher's output, marginal entropy - self-distillation, above which a nearly
uniform output still says something of its image: short runs pass through such a time on their way to sharper ones."""
TOLD_APART = 0.5
"""Nats between the entropy of the mean output and that of one image below which images are hardly told apart."""
FEWEST_USED, IMAGES_A_PROTOTYPE = 4.0, 8
"""Prototypes that the mean output uses, exp(entropy): one for so many images of a batch, and so many at most."""
RISE = 0.55
"""Of ln K, that the self-distillation loss has risen from its lowest."""
SWING, SWING_WINDOW = 1.1, 0.25
"""Of ln K, that the loss goes up and down within a window without getting anywhere; and the window."""
FLAT, FLAT_SHARE = 0.1, 0.2
"""Feature deviation, and its share of its highest, that are low together."""
RANK_SHARE = 0.07
"""RankMe as a share of its highest."""
MOST_MASKED = 0.75
"""Share of hidden tokens above which too little is left (masked autoencoders hide 0.75 with a decoder made for it)."""
UNDER_MASKED = 0.5
"""Of the share that the settings hide."""
LEARNT, LEARNT_AFTER = 0.3, 0.1
"""Decibels that hidden pixels gain at least over an untrained decoder, and the share of the run they are given."""
BEYOND_FILL_AFTER = 0.5
"""Share of the run after which hidden pixels are restored better than a mean colour does."""
FALL, FALL_ERRORS, FEW_EPOCHS = 3.0, 2.0, 20.0
"""Points of a score lost since its best, in points and in standard errors; and epochs from which it is blamed on
few images."""
SCORES_AGREE = 3
"""Scores in succession that must be low; they are no means."""
SCORES = {"knn_top1": ("k-NN", 2000), "retrieval_top1": ("retrieval of images kept out of training", 256)}
"""Scores on other images than those learned from, in words, and of how many images at most: for its standard error."""


def signals(rows: Sequence[Mapping[str, Any]], conditions: Conditions) -> Iterator[tuple[Signal, Column]]:
    """Yield each signal for which there are numbers, with the steps of its rows."""
    learnt = Series([row for row in rows if _is_step(row) and "teacher_entropy" in row], conditions.total)
    if len(learnt.rows):
        found = []
        if conditions.distils:
            found += [_uniform(learnt), _constant(learnt), _few_prototypes(learnt, conditions), *_lost(learnt)]
            found += [_flat(learnt), _rank(learnt)]
        found += [*_masking(learnt, conditions), *_restoration(learnt, conditions)]
        yield from ((signal, learnt.steps) for signal in found)
    for key in SCORES:
        scored = Series([row for row in rows if _is_step(row) and key in row], conditions.total)
        if len(scored.rows):
            yield _few_images(scored, conditions, key), scored.steps


def _is_step(row: Mapping[str, Any]) -> bool:
    step = row.get("step")
    return isinstance(step, int | float) and not isinstance(step, bool) and math.isfinite(step)


def _after(series: Series, share: float) -> Flags:
    """Return which rows lie beyond a share of the run [R]."""
    return series.steps > max(share * series.total, FIRST_STEPS)


def _low(series: Series, kind: Kind, key: str, value: Column, limit: float | Column, **words: Any) -> Signal:
    """Return a number that is bad below its limit [] or [R], once a run has had its time; `words` are a `Signal`'s."""
    bad = _true((value < limit) & _after(series, GRACE))
    return Signal(kind, key, value, words.pop("shown", limit), bad, **words)


def _true(bad: Any) -> Flags:
    """Return flags; where there is no number there is nothing bad."""
    return np.nan_to_num(np.asarray(bad, dtype=np.float64)).astype(np.bool_)


def _uniform(series: Series) -> Signal:
    share = series.mean(series.column("teacher_entropy") / series.column("max_entropy"), WINDOW)
    falling = share < share[series.past(FALLING_WINDOW, rows=2)] - FALLING
    foretold = series.mean(series.column("marginal_entropy") - series.column("self_distillation"), WINDOW)
    return Signal(
        "uniform",
        "teacher_entropy",
        share,
        UNIFORM,
        _true((share > UNIFORM) & ~falling & (foretold < FORETOLD) & _after(series, GRACE)),
        lambda value: (
            f"the teacher's output for one image is nearly uniform (entropy {value:.0%} of ln K, limit {UNIFORM:.0%})"
        ),
        advice.UNIFORM,
    )


def _constant(series: Series) -> Signal:
    apart = series.mean(series.column("marginal_entropy") - series.column("teacher_entropy"), WINDOW)
    return _low(
        *(series, "constant", "marginal_entropy", apart, TOLD_APART),
        text=lambda value: (
            f"the teacher hardly tells images apart (mean output {value:.2f} nats above that of one image, limit "
            f"{TOLD_APART})"
        ),
        knob=advice.CONSTANT,
    )


def _few_prototypes(series: Series, conditions: Conditions) -> Signal:
    limit = min(FEWEST_USED, conditions.batch / IMAGES_A_PROTOTYPE)
    used = np.exp(series.mean(series.column("marginal_entropy"), WINDOW))
    return _low(
        *(series, "few-prototypes", "marginal_entropy", used, limit),
        text=lambda value: f"all images share {value:.1f} prototypes (at least {limit:g} are usual)",
        knob=advice.FEW_PROTOTYPES,
    )


def _lost(series: Series) -> list[Signal]:
    """Return the rise of the self-distillation loss from its lowest, and how far it swings."""
    loss = series.mean(series.column("self_distillation") / series.column("max_entropy"), WINDOW)
    known = np.where(np.isfinite(loss), loss, np.inf)
    lowest = np.minimum.accumulate(known)
    rise = loss - lowest
    moved = np.concatenate([[0.0], np.cumsum(np.abs(np.diff(np.nan_to_num(loss))))])
    first = series.past(SWING_WINDOW)
    swing = moved - moved[first] - np.abs(loss - loss[first])
    settled = _after(series, GRACE + SWING_WINDOW)  # before, the window holds the first fall
    return [
        Signal(
            "lost",
            "self_distillation",
            rise,
            RISE,
            _true((rise > RISE) & _after(series, GRACE)),
            lambda value: (
                f"the student loses its teacher: self-distillation rose by {value:.0%} of ln K (limit {RISE:.0%})"
            ),
            advice.LOST,
            lambda row: int(np.flatnonzero(known[: row + 1] <= lowest[row])[-1]),
        ),
        Signal(
            "lost",
            "self_distillation",
            swing,
            SWING,
            _true((swing > SWING) & settled),
            lambda value: (
                f"student and teacher chase each other: self-distillation went up and down by {value:.0%} of ln K "
                f"within a quarter of the run (limit {SWING:.0%})"
            ),
            advice.CHASE,
            lambda row: int(first[row]),
        ),
    ]


def _flat(series: Series) -> Signal:
    spread = series.mean(series.column("feature_std"), WINDOW)
    limit = np.minimum(FLAT, FLAT_SHARE * _highest(spread))
    return _low(
        *(series, "flat", "feature_std", spread, limit),
        shown=FLAT,
        text=lambda value: f"features of different images become equal (deviation {value:.3f}, limit {FLAT})",
        knob=advice.FLAT,
    )


def _rank(series: Series) -> Signal:
    rank = series.mean(series.column("rankme"), WINDOW)
    share = rank / _highest(rank)
    return _low(
        *(series, "rank", "rankme", share, RANK_SHARE),
        text=lambda value: (
            f"features use few of their dimensions: RankMe is {value:.1%} of its highest (limit {RANK_SHARE:.0%})"
        ),
        knob=advice.RANK,
        began=lambda row: int(np.nanargmax(np.where(np.isfinite(rank[: row + 1]), rank[: row + 1], -np.inf))),
    )


def _highest(values: Column) -> Column:
    """Return the largest value so far [R]."""
    return np.maximum.accumulate(np.where(np.isfinite(values), values, -np.inf))


def _masking(series: Series, conditions: Conditions) -> Iterator[Signal]:
    masked, planned = series.mean(series.column("masked_share"), WINDOW), conditions.masked
    yield Signal(
        "over-masked",
        "masked_share",
        masked,
        MOST_MASKED,
        _true(masked > MOST_MASKED),
        lambda value: f"{value:.0%} of the tokens are hidden from the student (limit {MOST_MASKED:.0%})",
        advice.OVER_MASKED,
    )
    if planned > 0:
        yield Signal(
            "under-masked",
            "masked_share",
            masked,
            UNDER_MASKED * planned,
            _true(masked < UNDER_MASKED * planned),
            lambda value: f"{value:.1%} of the tokens are hidden, the settings say {planned:.1%}",
            advice.UNDER_MASKED,
        )


def _restoration(series: Series, conditions: Conditions) -> Iterator[Signal]:
    quality = series.column("psnr_masked")
    if not conditions.restores or not np.isfinite(quality).any():
        return
    fill = series.mean(series.column("psnr_fill"), WINDOW)
    mean = series.mean(quality, WINDOW)
    untrained = quality[np.isfinite(quality)][0]
    gained, beyond = mean - untrained, mean - fill
    bad = (gained < LEARNT) & _after(series, LEARNT_AFTER)
    yield Signal(
        "hidden",
        "psnr_masked",
        gained,
        LEARNT,
        _true(bad),
        lambda value: (
            f"restoration does not learn: hidden pixels {value:+.2f} dB since its start (limit {LEARNT:+.1f})"
        ),
        advice.HIDDEN,
    )
    yield Signal(
        "hidden",
        "psnr_masked",
        beyond,
        0.0,
        _true((beyond < 0.0) & _after(series, BEYOND_FILL_AFTER) & ~_true(bad)),
        lambda value: (
            f"hidden pixels are restored no better than by the mean colour of the visible ones ({value:+.2f} dB)"
        ),
        advice.HIDDEN,
    )


def _few_images(series: Series, conditions: Conditions, key: str) -> Signal:
    """Return how far a score has fallen since its best; few images are blamed where they were seen many times."""
    score, (name, images) = series.column(key), SCORES[key]
    best = _highest(score)
    error = 100 * np.sqrt(np.clip(best / 100 * (1 - best / 100), 0, None) * 2 / images)
    limit = np.maximum(FALL, FALL_ERRORS * error)
    seen = series.steps / series.total * conditions.epochs
    fall = best - score
    return Signal(
        "few-images",
        key,
        fall,
        FALL,
        _true((fall > limit) & (seen > FEW_EPOCHS)),
        lambda value: (
            f"{name} is {value:.1f} points below its best after {conditions.epochs:g} epochs planned on "
            f"{conditions.images} images: it fits these images and no others"
        ),
        advice.FEW_IMAGES,
        lasts=SCORES_AGREE,
    )
