"""The guard on a run's dynamics: looks at every row, warns when something goes wrong, and chooses the way back.

What is found is a function of the rows as metrics.jsonl has them (`mst.runtime.dynamics.detectors`), so the report
finds the same afterwards, and a run that is resumed reads its rows again. The first process decides for all.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from mst.checkpoint.compare import NOTED
from mst.config.load import override
from mst.config.schema import RunConfig, RunPlan
from mst.parallel.world import World
from mst.runtime import logging
from mst.runtime.dynamics.detectors import findings, foreseen
from mst.runtime.dynamics.records import LOOKS_BACK, Finding
from mst.runtime.dynamics.repair import MOST_REPAIRS, Knobs, Repair, effective_from, moves
from mst.runtime.storage.results import plain_json, read_jsonl
from mst.runtime.storage.rundir import RunDir

GIVES_BACK = 0.125
"""Share of the run that the first repair gives up at least; the second gives up twice as much. A number crosses its
limit some time after the networks have gone astray, and what comes from them then would be found again at once."""
DERIVED = {
    "optimizer.lr": "lr",
    "objective.teacher_temp": "teacher_temp",
    "objective.teacher_momentum": "teacher_momentum",
}
"""Settings that a plan holds the value of."""


def tell_foreseen(config: RunConfig, plan: RunPlan) -> None:
    """Warn of what is known to go wrong before the first step, unless that is not wanted."""
    if config.monitor.dynamics != "off":
        for finding in foreseen(config.model_dump(mode="json"), plan.model_dump(mode="json")):
            logging.warn(finding.line)


def moved(config: RunConfig, plan: RunPlan, repairs: Sequence[Repair], step: int) -> tuple[RunConfig, RunPlan]:
    """Return settings and derived values that count for a step, counted from 0.

    A learning rate is moved by a factor, so that one that is set by hand on the way stays moved.
    """
    values: dict[str, object] = {}
    for repair, first in zip(repairs, effective_from(repairs), strict=True):
        if step < first:
            continue
        for key, (before, now) in repair.changed.items():
            if key == "optimizer.lr" and before and now is not None:
                plan = plan.model_copy(update={"lr": plan.lr * (now / before)})
            elif key == "objective.teacher_temp":
                plan = plan.model_copy(update={"teacher_temp": now, "teacher_temp_start": now})
            elif key in DERIVED:
                plan = plan.model_copy(update={DERIVED[key]: now})
            else:
                values[key] = now
    return (override(config, values) if values else config), plan


def knobs_of(config: RunConfig, plan: RunPlan) -> Knobs:
    """Return what can be moved."""
    objective = config.objective
    return Knobs(
        lr=plan.lr,
        clip=config.optimizer.clip,
        teacher_momentum=plan.teacher_momentum,
        teacher_momentum_end=objective.teacher_momentum_end,
        teacher_temp=plan.teacher_temp,
        student_temp=objective.student_temp,
        center_momentum=objective.center_momentum,
        eligible_fraction=objective.eligible_fraction,
        mask_probability=objective.mask_probability,
    )


def with_repairs(plan: RunPlan, repairs: Sequence[Repair]) -> RunPlan:
    """Return a plan that notes the repairs besides what was changed by hand."""
    by_hand = [row for row in plan.interventions if "repair" not in row]
    rows = [
        {
            "step": repair.back,
            "changed": {key: list(pair) for key, pair in repair.changed.items()},
            "repair": repair.number,
            "because": f"{repair.text} (step {repair.found})",
        }
        for repair in repairs
    ]
    return plan.model_copy(update={NOTED: (*by_hand, *rows)})


def history(config: RunConfig, plan: RunPlan) -> int:
    """Return how many steps back a run keeps checkpoints, so that it can go back; 0 where it never does."""
    return math.ceil(LOOKS_BACK * plan.total_steps) if config.monitor.dynamics == "repair" else 0


class DynamicsWatch:
    """Watches one run."""

    def __init__(self, config: RunConfig, plan: RunPlan, run: RunDir) -> None:
        self._mode, self._run = config.monitor.dynamics, run
        self._config, self._plan = config.model_dump(mode="json"), plan.model_dump(mode="json")
        self._rows: list[Mapping[str, Any]] | None = None

    def observe(
        self, row: Mapping[str, Any], config: RunConfig, plan: RunPlan, done: int
    ) -> tuple[list[str], Repair | None]:
        """Look at a row of metrics with its step; called in all processes between steps.

        Args:
            row: of metrics, with its step.
            config, plan: as they count now.
            done: repairs so far.

        Returns:
            A line for each finding that begins here; and the way back, whose step is that of the newest checkpoint
            which is wanted, or None.
        """
        if self._mode == "off":
            return [], None
        if self._mode == "warn":
            return ([finding.line for finding in self._begun(row)] if World.current().first else []), None
        return World.current().from_first(lambda: self._decide(row, knobs_of(config, plan), done))

    def note(self, row: Mapping[str, Any]) -> None:
        """Take note of a row of an evaluation, which the first process has."""
        if self._rows is not None:
            self._rows.append(plain_json(row))

    def forget(self, plan: RunPlan) -> None:
        """Read the rows again, and take the plan as it is now: the run has gone back."""
        self._rows, self._plan = None, plan.model_dump(mode="json")

    def _begun(self, row: Mapping[str, Any]) -> list[Finding]:
        """Return what begins to be known with a row."""
        step = row["step"]
        if self._rows is None:
            self._rows = [known for known in read_jsonl(self._run.metrics) if _before(known, step)]
        self._rows.append(plain_json(row))
        return [each for each in findings(self._rows, self._config, self._plan) if each.found == step]

    def _decide(self, row: Mapping[str, Any], knobs: Knobs, done: int) -> tuple[list[str], Repair | None]:
        begun = self._begun(row)
        lines = [finding.line for finding in begun]
        for finding in begun:
            changed = moves(finding.kind, knobs, number=done + 1) if finding.repairable else {}
            if changed and done < MOST_REPAIRS:
                step = int(row["step"])
                total, number = self._plan["total_steps"], done + 1
                healthy = min(finding.began, step - math.ceil(GIVES_BACK * number * total))
                back = max(healthy, step - math.ceil(LOOKS_BACK * total), 0)
                return lines, Repair(done + 1, finding.kind, finding.text, finding.began, step, back, changed)
        if done and any(finding.repairable for finding in begun):
            lines.append(
                f"repaired {done} times already (at most {MOST_REPAIRS}), or no knob is left to move: going on as it is"
            )
        return lines, None


def _before(row: Mapping[str, Any], step: int) -> bool:
    """Whether a row is of an earlier step."""
    found = row.get("step")
    return isinstance(found, int) and found < step
