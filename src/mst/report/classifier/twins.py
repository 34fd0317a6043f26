"""A fine-tuning against the same one from fresh weights: found beside it, judged with its standard error."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from mst.report import numbers
from mst.report.compare import conditions
from mst.report.reading import FINETUNE, Row, is_number, visible
from mst.report.rows.uncertainty import error_of, error_of_difference
from mst.runtime.noise import is_clear
from mst.runtime.storage.rundir import RunDir

FRESH = ("random:", "scratch:")
MOST_LOOKED_AT = 200
"""Folders beside a run that are looked at, at most."""


@dataclass(frozen=True)
class FinetuningVerdict:
    """A sentence about a fine-tuning, and whether it is good news; None = neither."""

    text: str
    good: bool | None


def last_finetuning(results: Sequence[Row]) -> Row | None:
    """Return the last row of a fine-tuning that has an accuracy."""
    rows = [row for row in results if row.get("task") == FINETUNE and is_number(row["metrics"].get("top1"))]
    return rows[-1] if rows else None


def is_fresh(row: Row) -> bool:
    """Whether a fine-tuning began with fresh weights."""
    return str(row.get("backbone", "")).startswith(FRESH)


def find_twin(root: Path, own: Row, read: Callable[[Path], Sequence[Row]]) -> tuple[str, Row] | None:
    """Return name and row of the first fine-tuning beside a run that differs in its start alone, fresh or trained.

    Args:
        root: the run's folder.
        own: its row.
        read: returns the rows of a results.jsonl.
    """
    try:
        names = sorted(entry.name for entry in os.scandir(root.resolve().parent) if entry.is_dir())[:MOST_LOOKED_AT]
    except OSError:
        return None
    for name in names:
        folder = root.resolve().parent / name
        if folder == root.resolve():
            continue
        other = last_finetuning([row for row in read(RunDir(folder).results) if isinstance(row.get("metrics"), dict)])
        if other is not None and is_fresh(other) != is_fresh(own) and conditions(other) == conditions(own):
            return visible(name), other
    return None


def judge(own: Row, twin: tuple[str, Row] | None) -> FinetuningVerdict:
    """Return what the trained weights brought; without a twin, how to find out."""
    if twin is None:
        other = "trained" if is_fresh(own) else "fresh"
        how = "--backbone RUN" if is_fresh(own) else "--backbone random:RUN"
        return FinetuningVerdict(
            f"Not compared with {other} weights: fine-tune once more with {how} and the same other words into a "
            "folder beside this one.",
            None,
        )
    name, other_row = twin
    trained, fresh = (other_row, own) if is_fresh(own) else (own, other_row)
    values = [float(row["metrics"]["top1"]) for row in (trained, fresh)]
    errors = [error_of(row, "top1") for row in (trained, fresh)]
    gain, se = values[0] - values[1], error_of_difference(fresh, trained, "top1")
    said = (
        f"Top-1 {numbers.measured(values[0], errors[0])} from trained weights, "
        f"{numbers.measured(values[1], errors[1])} from fresh ones ({name} is the other run): "
        f"{numbers.change(gain, se)} points"
    )
    if se is None or not is_clear(gain, se):
        return FinetuningVerdict(f"{said}, no clear difference.", None)
    return FinetuningVerdict(f"{said}: the trained weights {'help' if gain > 0 else 'hurt'}.", gain > 0)
