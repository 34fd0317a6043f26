"""What the guards pass on: a number over the rows with its limit, a finding, and what is known of a run beforehand.

Letters: R rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from mst.runtime.dynamics.series import Column

Kind = Literal[
    "many-prototypes",
    "repeated",
    "settings",
    "uniform",
    "constant",
    "few-prototypes",
    "lost",
    "flat",
    "rank",
    "over-masked",
    "under-masked",
    "hidden",
    "few-images",
]
REPAIRABLE = ("over-masked", "uniform", "constant", "few-prototypes", "lost", "flat", "rank")
"""Findings that a knob of a running run helps against, the clearest cause first."""
WINDOW, GRACE, LASTS = 0.03, 0.05, 2
"""Share of the run that a mean is over, three rows at least; share in which nothing is found in what is learnt; means
that must agree."""
FIRST_STEPS = 15
"""Steps in which nothing is found in what is learnt either, however short a run is."""
CALM = 0.1
"""Share of the run for which a thing must not be seen any more until it counts as over."""
LOOKS_BACK = 0.25
"""Share of a run that lies at most between where a thing began and where it is found."""

Flags = NDArray[np.bool_]


@dataclass(frozen=True)
class Finding:
    """One thing that went wrong.

    Attributes:
        kind: what.
        began: step at which it began, as far as rows tell.
        found: step of the row that tells it; 0 = known before the first.
        ended: step of the first row that no longer does; None = it stands.
        key: the curve that shows it.
        value: the number at `found`.
        limit: what it was compared with.
        text: number and limit in words.
        knob: what to move.
    """

    kind: Kind
    began: int
    found: int
    ended: int | None
    key: str
    value: float
    limit: float
    text: str
    knob: str

    @property
    def line(self) -> str:
        """The finding for the log."""
        when = f"at step {self.found}" if self.found else "before the first step"
        return f"dynamics {when}: {self.text}: {self.knob}"

    @property
    def repairable(self) -> bool:
        """Whether a run can go on better by itself."""
        return self.kind in REPAIRABLE


@dataclass(frozen=True)
class Signal:
    """One number over the rows, and where it is bad.

    Attributes:
        kind, key, limit, knob: as of a `Finding`.
        value: by row [R].
        bad: by row [R].
        text: takes the value; returns number and limit in words.
        began: takes the first bad row; returns the row at which it began. None = that row.
        lasts: rows in succession that must be bad.
    """

    kind: Kind
    key: str
    value: Column
    limit: float
    bad: Flags
    text: Callable[[float], str]
    knob: str
    began: Callable[[int], int] | None = None
    lasts: int = LASTS


@dataclass(frozen=True)
class Conditions:
    """What of a run's settings and plan decides what its numbers should be.

    Attributes:
        total: steps.
        distils, restores: whether there is such a loss.
        masked: share of the tokens that settings hide.
        images: in the data set.
        epochs: planned.
        batch: images of a step.
    """

    total: int
    distils: bool
    restores: bool
    masked: float
    images: int
    epochs: float
    batch: int


def conditions_of(config: Mapping[str, Any], plan: Mapping[str, Any]) -> Conditions | None:
    """Return the conditions of a pre-training from config.json and plan.json; None where they do not say."""
    objective, train = config.get("objective"), config.get("train")
    if not isinstance(objective, Mapping) or not isinstance(train, Mapping):
        return None
    try:
        objective = {**objective, **_moved_masks(plan.get("interventions"))}
        shares = [objective.get(key, 1.0) for key in ("eligible_fraction", "mask_probability", "masked_sample_share")]
        masked = 0.0 if objective.get("strategy") == "none" else math.prod(float(share) for share in shares)
        return Conditions(
            total=int(plan["total_steps"]),
            distils=float(objective.get("distillation_weight", 1.0)) > 0,
            restores=float(objective.get("restoration_weight", 1.0)) > 0,
            masked=masked,
            images=int(plan["dataset_size"]),
            epochs=float(train.get("epochs", 0.0)),
            batch=int(plan["batch_size"]),
        )
    except (KeyError, IndexError, TypeError, ValueError, OverflowError):
        return None


def _moved_masks(interventions: Any) -> dict[str, Any]:
    """Return the settings of masks that a repair has moved; plan.json notes them."""
    changes = [row.get("changed") for row in interventions or () if isinstance(row, Mapping)]
    pairs = [pair for change in changes if isinstance(change, Mapping) for pair in change.items()]
    return {key.removeprefix("objective."): pair[1] for key, pair in pairs if "mask" in key}
