"""Resuming a run: whether its images are still those that it began with, and how it goes on if they are not."""

from __future__ import annotations

import json
import os
import shlex
from dataclasses import replace
from typing import Any

from mst.checkpoint.store import CheckpointStore
from mst.config.schema import RunPlan
from mst.errors import UsageError
from mst.planning.setup import Setup
from mst.runtime import logging
from mst.runtime.identity import DataIdentity, difference
from mst.runtime.storage.rundir import RunDir

KEPT = ("lr", "prototypes", "teacher_temp", "teacher_temp_start", "teacher_momentum", "mean", "std")
"""Derived values that a run keeps when its images change: the networks have learnt with them."""


def with_identity(setup: Setup) -> Setup:
    """Return a setup whose plan holds the identity of its images."""
    places = ", ".join(os.fsencode(place).decode("utf-8", "backslashreplace") for place in setup.config.data.train)
    identity = setup.images.fingerprint(places)
    return replace(setup, plan=setup.plan.model_copy(update={"data_identity": identity.row()}))


RESUME = "mst pretrain --resume {run}"


def resumed_setup(setup: Setup, run: RunDir, *, accept: bool, command: str = RESUME) -> Setup:
    """Compare a run's images with those that it began with; return the setup that it goes on with.

    If they changed and `accept` is true, then from this step on the steps of an epoch, the length of the run and the
    order of the images follow from the new images. Rates, temperatures, prototypes and normalisation stay. The plan
    notes the former images, so the run can be resumed again without another question.

    Args:
        setup: of the images as they are now, with their identity.
        run: the run's folder.
        accept: go on with other images.
        command: what to type, `{run}` being the run's folder, for the message.

    Raises:
        UsageError: the images changed, and `accept` is false.
    """
    store = CheckpointStore(run.checkpoints, keep=1)
    steps = store.steps()
    saved = _saved_plan(run, store) if steps else None
    if saved is None:
        return setup
    if saved.order is None and str(setup.plan.order).startswith("global, computed"):
        raise UsageError(
            f"{run.root} was started by an older version, which drew the order of {setup.plan.dataset_size} images in "
            "another way: go on with that version, or start anew"
        )
    past = saved.accepted_data
    before, now = (DataIdentity.from_row(plan.data_identity) for plan in (saved, setup.plan))
    assert now is not None
    changed = _change(saved, before, now)
    if not changed:
        if before is None:
            logging.info(f"{run.root} was started by an older version, which did not note what its images held")
            return _with(setup, _ranges(saved), past)
        return _with(setup, _kept(saved, setup) if past else _ranges(saved), past)
    if not accept:
        again = f"{command.format(run=shlex.quote(str(run.root)))} --accept-changed-data"
        raise UsageError(f"{run.root} was started with other images ({changed}): give them back, or go on with {again}")
    logging.warn(f"from step {steps[-1]} on with other images ({changed})")
    row = before.row() if before is not None else {"count": saved.dataset_size}
    return _with(setup, _kept(saved, setup), (*past, {"identity": row, "until_step": steps[-1]}))


def _change(saved: RunPlan, before: DataIdentity | None, now: DataIdentity) -> str:
    """Return in words what changed, or ""; of a run of an older version only the number of images is known."""
    if before is not None:
        return difference(before, now)
    return "" if saved.dataset_size == now.count else f"{now.count} images, not {saved.dataset_size}"


def _ranges(saved: RunPlan) -> dict[str, Any]:
    """Return the value ranges of a run of an older version: none, so each image decides what is black and white."""
    return {"value_ranges": None} if saved.value_ranges is None else {}


def _kept(saved: RunPlan, setup: Setup) -> dict[str, Any]:
    """Return what stays, and beside the former value ranges those of types of numbers that are new."""
    kept = {key: getattr(saved, key) for key in KEPT}
    ranges = _ranges(saved) or {"value_ranges": {**(setup.plan.value_ranges or {}), **(saved.value_ranges or {})}}
    kept |= ranges
    return {**kept, "reasons": dict.fromkeys(KEPT, "kept from before the images changed")}


def _with(setup: Setup, kept: dict[str, Any], past: tuple[dict[str, Any], ...]) -> Setup:
    reasons = {**setup.plan.reasons, **kept.get("reasons", {})}
    return replace(setup, plan=setup.plan.model_copy(update={**kept, "reasons": reasons, "accepted_data": past}))


def _saved_plan(run: RunDir, store: CheckpointStore) -> RunPlan | None:
    """Return the plan that the run had last: plan.json; if it is damaged, that of the newest checkpoint; else None.

    Raises:
        CheckpointError: plan.json is damaged, and all checkpoints are.
    """
    try:
        return RunPlan.model_validate_json(run.plan.read_bytes())
    except (OSError, ValueError, RecursionError):
        pass
    try:
        saved = store.load_latest().info["plan"]
        return RunPlan.model_validate_json(json.dumps({**saved, "reasons": {}}))
    except (ValueError, KeyError, TypeError):
        return None
