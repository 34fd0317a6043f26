"""A step of a pre-training again: the run's settings, images and checkpoint brought together."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import closing
from functools import partial
from typing import Any

from mst.checkpoint.compare import NOTED
from mst.checkpoint.format import Checkpoint, OtherFormat, verified_info
from mst.checkpoint.store import CheckpointStore
from mst.config.load import load_config, override, with_absolute_paths
from mst.config.schema import RunConfig, RunPlan
from mst.engine.replay import Replay
from mst.errors import CheckpointError, UsageError
from mst.planning.setup import Setup, prepare
from mst.planning.stream import CropStream
from mst.runtime import logging
from mst.runtime.dynamics.repair import read_repairs
from mst.runtime.storage.rundir import RunDir
from mst.train.pretraining import Pretraining
from mst.train.replay import inspect_step, weights
from mst.train.state import new_state
from mst.views.record import Crops
from mst.workflows.changed_data import resumed_setup, with_identity
from mst.workflows.replay.found import found_in


def replay_pretraining(run: RunDir, step: int, *, accept_changed_data: bool) -> dict[str, Any]:
    """Compute step number `step` of a run again, from the newest checkpoint before it or from the seed.

    Args:
        run: its folder; nothing in it changes.
        step: counted from 1, as in bad_steps.jsonl.
        accept_changed_data: whether other images than the run's are taken too.

    Returns:
        As `mst.workflows.replay.run.replay`.

    Raises:
        UsageError: no such step, other images, a checkpoint of another version, or no pre-training.
    """
    plan = _stored_plan(run)
    if not 1 <= step <= plan.total_steps:
        raise UsageError(f"step {step} is outside the run {run.root}: give 1 to {plan.total_steps}")
    checkpoint = _checkpoint(run, step)
    begun = checkpoint.step if checkpoint else 0
    setup = with_identity(prepare(_config(run, plan, begun, step)))
    setup = resumed_setup(setup, run, accept=accept_changed_data, command=f"mst replay {{run}} {step}")
    task = _task(setup, run, resumed=checkpoint is not None)
    if checkpoint is None:
        logging.info(f"{run.root} has no checkpoint before step {step}: beginning at step 0, from the seed")
    else:
        task.state.load(checkpoint.parts)
    again = Replay(task, task.intervals, partial(weights, task))
    logging.info(f"replaying {step - 1 - begun} steps from step {begun} on, then step {step}; as long as training them")
    with closing(_batches(setup, begun)) as batches:
        again.steps(batches, step - 1 - begun)
        inspection = inspect_step(task, again, again.take(batches))
    found = found_in(run, step, begun=begun, again=again, inspection=inspection, image=setup.images.name)
    return {**found, "epoch": (step - 1) // setup.plan.steps_per_epoch + 1}


def _batches(setup: Setup, first_step: int) -> Generator[Crops, None, None]:
    with CropStream(setup, None, first_step=first_step) as crops:
        yield from crops


def _task(setup: Setup, run: RunDir, *, resumed: bool) -> Pretraining:
    """Return the run's task at step 0; `resumed` = a checkpoint is going to replace its weights."""
    state = new_state(setup.build_pair(resumed=resumed), setup.config, setup.plan)
    source = partial(_batches, setup)
    repairs = read_repairs(run)
    return Pretraining(
        state, source, config=setup.config, plan=setup.plan, run=run, dtype=setup.precision, repairs=repairs
    )


def _stored_plan(run: RunDir) -> RunPlan:
    """Return the run's plan.

    Raises:
        UsageError: it is missing or damaged.
    """
    try:
        return RunPlan.model_validate_json(run.plan.read_bytes())
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise UsageError(f"{run.root} holds no pre-training whose plan.json and config.json can be read") from error


def _checkpoint(run: RunDir, step: int) -> Checkpoint | None:
    """Return the newest checkpoint before a step; None = there is none.

    Raises:
        CheckpointError: those before it are damaged, or the run is of another format.
    """
    store = CheckpointStore(run.checkpoints, keep=1)
    steps = store.steps()
    if any(saved < step for saved in steps):
        return store.load_latest(most=step - 1)
    for saved in steps:
        try:
            verified_info(store.path(saved))
        except OtherFormat as other:
            raise CheckpointError(f"cannot replay {run.root}: {store.path(saved)}: {other}") from other
        except Exception:  # damaged: nothing is taken from it
            continue
    return None


def _config(run: RunDir, plan: RunPlan, begun: int, step: int) -> RunConfig:
    """Return the settings of the steps from `begun` to `step`: later changes are undone.

    Raises:
        UsageError: settings changed between the checkpoint and the step.
    """
    config = with_absolute_paths(load_config(run.config))
    for noted in reversed(getattr(plan, NOTED)):
        at = noted["step"]
        if "repair" in noted:  # those count by themselves, see `mst.train.dynamics.moved`
            continue
        if begun < at < step:
            raise UsageError(
                f"the run's settings changed at step {at}, and there is no checkpoint of that step: step {step} cannot "
                f"be replayed; steps up to {at} can"
            )
        if at >= step:
            before = {key: pair[0] for key, pair in noted["changed"].items()}
            config = override(config, before)
    return config
