"""What a run does about a finding: it goes back to before it began, on with a knob moved, and keeps a record of that.

Which knob follows from the cause, not from the finding alone: whatever is outside of the range in which
self-distillation is known to be stable is brought back into it first, the learning rate is what is left. The ranges are
DINO's (Caron et al. 2021, section 5 and its appendices): teacher 0.04 to 0.07 beside a student of 0.1; centers of
momentum 0 to 0.99; a teacher that follows its student at once (momentum 0, or below 0.9) chases it; a rate of 0.0005
for 256 images.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from mst.runtime.storage.files import write_atomic
from mst.runtime.storage.results import read_jsonl
from mst.runtime.storage.rundir import RunDir

MOST_REPAIRS = 2
"""A run that goes wrong a third time goes on as it is: it needs a person."""
RATE, MEMORY = 0.25, 4.0
"""Of the learning rate, and of the steps that the teacher averages over. A quarter: the two repairs that a run has must
reach a rate that is ten times too high."""
SAFE_TEMP_RATIO, HIGHEST_TEMP_RATIO = 0.4, 0.75
"""Teacher's temperature as a share of the student's: DINO's 0.04 / 0.1; 0.07 is its highest and 0.08 has collapsed."""
SAFE_CENTER, SLOWEST_CENTER = 0.9, 0.995
SAFE_RATE, HIGHEST_RATE = 0.002, 0.02
"""Learning rate: DINO's at a batch of 1,024, and ten times that. A step of Adam moves a weight by about the rate
(Kingma and Ba 2015, section 2.1), and timm's ViTs begin with weights of deviation 0.02."""
SHORTEST_MEMORY, SAFE_MEMORY = 10.5, 40.0
"""Steps that the teacher averages over: 1 / (1 - momentum)."""
CLIP = 1.0
"""Largest gradient norm of a parameter tensor, where there was no limit or a larger one."""
MASKED, MOST_MASKED = 0.3, 0.7
"""Share of tokens that is hidden, where nearly all were."""

Change = tuple[float | None, float | None]
"""A setting before, and from then on."""


@dataclass(frozen=True)
class Knobs:
    """What can be moved, as it is when something is found; names are those of settings.

    Attributes:
        lr: highest learning rate.
        clip: largest gradient norm of a tensor; None = no limit.
        teacher_momentum, teacher_momentum_end: at the first and the last step.
        teacher_temp: after its warm-up.
        student_temp: of the student.
        center_momentum: of the center.
        eligible_fraction, mask_probability: of the masks.
    """

    lr: float
    clip: float | None
    teacher_momentum: float
    teacher_momentum_end: float
    teacher_temp: float
    student_temp: float
    center_momentum: float
    eligible_fraction: float
    mask_probability: float


def moves(kind: str, knobs: Knobs, *, number: int) -> dict[str, Change]:
    """Return which settings a run goes on with, and their values before; empty = no knob of a running run helps.

    Args:
        kind: of the finding, see `mst.runtime.dynamics.records`.
        knobs: as they are.
        number: of the repair, from 1. From the second on the rate is lowered, whatever else is moved.
    """
    if kind == "over-masked":
        return _masks(knobs)
    changed = _out_of_range(knobs)
    if not changed or number > 1:
        changed.setdefault("optimizer.lr", (knobs.lr, knobs.lr * RATE))
        if number > 1 and "objective.teacher_momentum" not in changed:
            changed |= _slower(knobs, MEMORY / (1 - knobs.teacher_momentum))
    return changed


def _out_of_range(knobs: Knobs) -> dict[str, Change]:
    """Return the moves that bring each knob back that is where self-distillation is not stable."""
    changed: dict[str, Change] = {}
    if knobs.teacher_temp > HIGHEST_TEMP_RATIO * knobs.student_temp:
        changed["objective.teacher_temp"] = (knobs.teacher_temp, SAFE_TEMP_RATIO * knobs.student_temp)
    if knobs.center_momentum > SLOWEST_CENTER:
        changed["objective.center_momentum"] = (knobs.center_momentum, SAFE_CENTER)
    if 1 / (1 - knobs.teacher_momentum) < SHORTEST_MEMORY:
        changed |= _slower(knobs, SAFE_MEMORY)
    if knobs.clip is None:
        changed["optimizer.clip"] = (None, CLIP)
        changed["optimizer.lr"] = (knobs.lr, knobs.lr * RATE)
    if knobs.lr > HIGHEST_RATE:
        changed["optimizer.lr"] = (knobs.lr, SAFE_RATE)
    return changed


def _slower(knobs: Knobs, memory: float) -> dict[str, Change]:
    """Let the teacher average over so many steps, to the end of the run at least."""
    momentum = 1 - 1 / memory
    changed: dict[str, Change] = {"objective.teacher_momentum": (knobs.teacher_momentum, momentum)}
    if knobs.teacher_momentum_end < momentum:
        changed["objective.teacher_momentum_end"] = (knobs.teacher_momentum_end, momentum)
    return changed


def _masks(knobs: Knobs) -> dict[str, Change]:
    share = knobs.eligible_fraction * knobs.mask_probability
    if share <= MOST_MASKED:
        return {}
    return {"objective.mask_probability": (knobs.mask_probability, MASKED / knobs.eligible_fraction)}


@dataclass(frozen=True)
class Repair:
    """One return to an earlier step.

    Attributes:
        number: from 1.
        kind: of the finding.
        text: what was found.
        began: step at which it began.
        found: step of the row that told.
        back: step that the run went back to; those up to `found` are abandoned.
        changed: setting -> (before, from `back` on).
    """

    number: int
    kind: str
    text: str
    began: int
    found: int
    back: int
    changed: Mapping[str, Change]

    def row(self) -> dict[str, Any]:
        """Return the record as JSON types."""
        return {**asdict(self), "changed": {key: list(pair) for key, pair in self.changed.items()}}

    @property
    def words(self) -> str:
        """The moves in words."""
        return ", ".join(f"{key} {_shown(before)} -> {_shown(now)}" for key, (before, now) in self.changed.items())


def _shown(value: float | None) -> str:
    return "none" if value is None else f"{value:.4g}"


def effective_from(repairs: Sequence[Repair]) -> list[int]:
    """Return from which step on each repair counts: a later one that went back further takes it along."""
    return [min(repair.back for repair in repairs[place:]) for place in range(len(repairs))]


def write_repairs(run: RunDir, repairs: Sequence[Repair]) -> None:
    """Write the record of all repairs, whole or not at all."""
    write_atomic(run.repairs, "".join(json.dumps(repair.row()) + "\n" for repair in repairs))


def read_repairs(run: RunDir) -> list[Repair]:
    """Return the repairs of a run; rows that are damaged, and those after them, are left out."""
    if not run.repairs.is_file():
        return []
    found: list[Repair] = []
    for row in read_jsonl(run.repairs):
        try:
            changed = {str(key): (_number(pair[0]), _number(pair[1])) for key, pair in row["changed"].items()}
            number, began, last, back = (int(row[key]) for key in ("number", "began", "found", "back"))
            found.append(Repair(number, str(row["kind"]), str(row["text"]), began, last, back, changed))
        except (KeyError, TypeError, ValueError, AttributeError, IndexError):
            break
    return found


def _number(value: Any) -> float | None:
    return None if value is None else float(value)
