"""A step of any training again: which kind it is, and the way to it."""

from __future__ import annotations

import json
from typing import Any

from mst.errors import UsageError
from mst.runtime.storage.rundir import RunDir, open_run_dir
from mst.workflows.finetuning.stored import TASK
from mst.workflows.replay.downstream import replay_downstream
from mst.workflows.replay.pretraining import replay_pretraining


def replay(run: RunDir, step: int, *, accept_changed_data: bool = False) -> dict[str, Any]:
    """Compute step number `step` of a training again, from the newest checkpoint before it or from the start.

    Args:
        run: its folder; nothing in it changes.
        step: counted from 1, as in bad_steps.jsonl.
        accept_changed_data: whether other images than those of the training are taken too.

    Returns:
        What was found, as JSON types: `first` is the first tensor that is not finite, or None.

    Raises:
        UsageError: no training there, no such step, or settings, weights or images that changed since.
    """
    if run.training.exists() or _is_fine_tuning(run):
        return replay_downstream(run, step, accept_changed_data=accept_changed_data)
    return replay_pretraining(open_run_dir(run.root), step, accept_changed_data=accept_changed_data)


def _is_fine_tuning(run: RunDir) -> bool:
    """Whether config.json is of a fine-tuning.

    Raises:
        UsageError: it is of a task that this version does not know.
    """
    try:
        values = json.loads(run.config.read_bytes())
    except (OSError, ValueError, RecursionError):
        return False  # said later
    task = values.get("task") if isinstance(values, dict) else None
    if task not in {None, TASK}:
        raise UsageError(f"{run.root} holds a training of another kind, {task}")
    return task == TASK
