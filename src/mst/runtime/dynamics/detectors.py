"""What can go wrong in a pre-training, told from its settings and rows: each with its step, number, limit and knob.

Every number is a mean over a window that looks back only, and windows are shares of the run, so a finding depends on
the rows up to the one that tells it: it is the same while the run is on and in the report. Limits lie between healthy
and provoked runs; docs/dynamics.md has the figures of both.

Letters: R rows, K prototypes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from mst.runtime.dynamics.known import known
from mst.runtime.dynamics.records import CALM, REPAIRABLE, Finding, Signal, conditions_of
from mst.runtime.dynamics.series import Column
from mst.runtime.dynamics.signals import signals


def findings(rows: Sequence[Mapping[str, Any]], config: Mapping[str, Any], plan: Mapping[str, Any]) -> list[Finding]:
    """Return what went wrong in a run, in the order in which it was found.

    Args:
        rows: of metrics.jsonl, in the order of their steps; those of evaluations may be among them.
        config: config.json.
        plan: plan.json.
    """
    conditions = conditions_of(config, plan)
    if conditions is None or conditions.total < 1:
        return []
    found = [each for signal, steps in signals(rows, conditions) for each in _episodes(signal, steps, conditions.total)]
    found = sorted(found, key=lambda each: (each.found, REPAIRABLE.index(each.kind) if each.repairable else 99))
    return [*known(config, plan, conditions), *found]


def foreseen(config: Mapping[str, Any], plan: Mapping[str, Any]) -> list[Finding]:
    """Return what is known to go wrong before the first step; arguments as of `findings`."""
    return findings([], config, plan)


def _episodes(signal: Signal, steps: Column, total: int) -> Iterator[Finding]:
    """Yield a finding for each time that a signal was bad for `lasts` rows; it ends when it was not for `CALM`."""
    streak, last = 0, 0.0
    pending: Finding | None = None
    for row, bad in enumerate(signal.bad.tolist()):
        streak, last = (streak + 1, float(steps[row])) if bad else (0, last)
        if pending is None and streak == signal.lasts:
            first = row - streak + 1
            began = signal.began(first) if signal.began is not None else first
            value = float(signal.value[row])
            pending = Finding(
                signal.kind,
                int(steps[max(began, 0)]) if began > 0 else 0,
                int(steps[row]),
                None,
                signal.key,
                value,
                signal.limit,
                signal.text(value),
                signal.knob,
            )
        elif pending is not None and not bad and steps[row] - last >= CALM * total:
            yield replace(pending, ended=int(steps[row]))
            pending = None
    if pending is not None:
        yield pending
