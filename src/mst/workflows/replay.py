"""A step of a run again: the run's settings, images and checkpoint brought together, nothing written in its folder."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Generator
from contextlib import closing
from dataclasses import asdict
from functools import partial
from typing import Any

from mst.checkpoint.compare import NOTED
from mst.checkpoint.format import Checkpoint, OtherFormat, verified_info
from mst.checkpoint.store import CheckpointStore
from mst.config.load import load_config, override, with_absolute_paths
from mst.config.schema import RunConfig, RunPlan
from mst.engine.inspection import BLOW_UP
from mst.engine.replay import Replay
from mst.errors import CheckpointError, UsageError
from mst.planning.setup import Setup, prepare
from mst.planning.stream import as_views, make_loader
from mst.runtime import logging
from mst.runtime.storage.record import bad_steps_file
from mst.runtime.storage.results import read_jsonl
from mst.runtime.storage.rundir import RunDir
from mst.train.pretraining import Pretraining
from mst.train.replay import Inspection, inspect_step, weights
from mst.train.state import new_state
from mst.views.record import Views
from mst.workflows.changed_data import resumed_setup, with_identity

LOSSES = ("loss", "self_distillation", "restoration", "grad_norm")
SHOWN = 8


def replay(run: RunDir, step: int, *, accept_changed_data: bool = False) -> dict[str, Any]:
    """Compute step number `step` of a run again, from the newest checkpoint before it or from the seed.

    Args:
        run: its folder; nothing in it changes.
        step: counted from 1, as in bad_steps.jsonl.
        accept_changed_data: whether other images than the run's are taken too.

    Returns:
        What was found, as JSON types: `first` is the first tensor that is not finite, or None.

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
    found = _result(setup, step, inspection)
    found["run"], found["from_step"] = str(run.root), begun
    found["recorded"] = _recorded(run, step, inspection, again)
    growth = again.growth
    found["weights_blew_up"] = None if growth is None else {**asdict(growth), "after": _number(growth.after)}
    return found


def _batches(setup: Setup, first_step: int) -> Generator[Views, None, None]:
    with make_loader(setup, None, start_step=first_step) as loader:
        yield from map(partial(as_views, device=setup.device), loader)


def _task(setup: Setup, run: RunDir, *, resumed: bool) -> Pretraining:
    """Return the run's task at step 0; with `resumed`, its weights are going to be replaced."""
    state = new_state(setup.build_pair(resumed=resumed), setup.config, setup.plan)
    source = partial(_batches, setup)
    return Pretraining(state, source, config=setup.config, plan=setup.plan, run=run, dtype=setup.precision)


def _stored_plan(run: RunDir) -> RunPlan:
    """Return the run's plan.

    Raises:
        UsageError: it is missing or damaged, or the folder is of another kind of training.
    """
    try:
        if "task" in json.loads(run.config.read_bytes()):
            raise UsageError(f"{run.root} holds no pre-training: mst replay takes the run of `mst pretrain`")
        return RunPlan.model_validate_json(run.plan.read_bytes())
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise UsageError(f"{run.root} holds no pre-training whose plan.json and config.json can be read") from error


def _checkpoint(run: RunDir, step: int) -> Checkpoint | None:
    """Return the newest checkpoint of before a step; None = there is none.

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
    """Return the settings that the steps had: changes that were made after them are taken back.

    Raises:
        UsageError: settings changed between the checkpoint and the step.
    """
    config = with_absolute_paths(load_config(run.config))
    for noted in reversed(getattr(plan, NOTED)):
        at = noted["step"]
        if begun < at < step:
            raise UsageError(
                f"the run's settings changed at step {at}, and there is no checkpoint of that step: step {step} cannot "
                f"be replayed; steps up to {at} can"
            )
        if at >= step:
            before = {key: pair[0] for key, pair in noted["changed"].items()}
            config = override(config, before)
    return config


def _result(setup: Setup, step: int, inspection: Inspection) -> dict[str, Any]:
    """Return what the inspection found, as JSON types."""
    report, found = inspection.report, inspection.found
    numbers = report.scalars()
    pixels = bool(found) and found[0].name.startswith("pixels")
    everyone = len(inspection.images) == len(inspection.indices) and not pixels
    images = [
        {"position": place, "index": inspection.indices[place], "path": setup.images.name(inspection.indices[place])}
        for place in inspection.images
    ]
    return {
        "step": step,
        "epoch": (step - 1) // setup.plan.steps_per_epoch + 1,
        "finite": not found,
        "skipped": report.skipped,
        "losses": {name: _number(value) for name, value in numbers.items()},
        "first": {**asdict(found[0]), "text": str(found[0])} if found else None,
        "not_finite": [tensor.name for tensor in found],
        "all_images": everyone,
        "images": images,
        "indices": list(inspection.indices),
        "largest_gradient": _sized(inspection.gradient),
        "largest_weight_before": _sized(inspection.weight),
        "largest_weight_after": _sized(inspection.weight_after),
    }


def _sized(found: tuple[str, float] | None) -> dict[str, Any] | None:
    return None if found is None else {"name": found[0], "size": _number(found[1])}


def _number(value: float) -> float | str:
    """Return a number; one that is not finite as a word, since JSON has no such numbers."""
    return value if math.isfinite(value) else str(value)


def _recorded(run: RunDir, step: int, inspection: Inspection, again: Replay) -> dict[str, Any] | None:
    """Compare with what the run wrote of this step; None where it wrote nothing."""
    listed = [row for row in read_jsonl(bad_steps_file(run)) if row.get("step") == step]
    if listed:
        row, numbers = listed[-1], inspection.report.scalars()
        now = {name: str(value) for name, value in numbers.items()} | {"indices": list(inspection.indices)}
        differ = {key: [row[key], now[key]] for key in now if key in row and row[key] != now[key]}
        return {"file": "bad_steps.jsonl", "equal": not differ, "differences": differ}
    rows = [row for row in read_jsonl(run.metrics) if row.get("step") == step and "loss" in row]
    remarks = again.rows.get(step)
    if not rows or remarks is None or remarks.row is None:
        return None
    differ = {key: [rows[-1].get(key), remarks.row[key]] for key in LOSSES if rows[-1].get(key) != remarks.row[key]}
    return {"file": "metrics.jsonl", "equal": not differ, "differences": differ}


def describe(found: dict[str, Any]) -> list[str]:
    """Write what was found for a person, a line each."""
    losses = ", ".join(f"{name} {float(value):.9g}" for name, value in found["losses"].items())
    lines = [
        f"step {found['step']} of epoch {found['epoch']}, replayed from step {found['from_step']}",
        f"{losses}; {'skipped' if found['skipped'] else 'done'}",
    ]
    first = found["first"]
    lines.append(f"first tensor that is not finite: {first['text']}" if first else "all tensors are finite")
    lines += [
        f"image {image['position']} of the batch, number {image['index']}: {image['path']}"
        for image in found["images"][:SHOWN]
    ]
    if len(found["images"]) > SHOWN:
        lines.append(f"and {len(found['images']) - SHOWN} images more (--json has them all)")
    if first and found["all_images"]:
        lines.append("these are all images of the batch: more likely the weights are bad than an image")
    elif first and not found["images"]:
        lines.append("the networks' outputs are finite for every image: no single image is to blame")
    for title, key in (("gradient", "largest_gradient"), ("weight", "largest_weight_before")):
        if found[key]:
            lines.append(f"largest {title}: {float(found[key]['size']):.4g} in {found[key]['name']}")
    growth = found["weights_blew_up"]
    if growth:
        size = f"from {growth['before']:.4g} to {float(growth['after']):.4g} in {growth['name']}"
        lines.append(f"weights blew up (by more than {BLOW_UP:g} times) at step {growth['step']}: {size}")
    elif found["all_images"] and found["from_step"]:
        before = f"mst replay {shlex.quote(found['run'])} {found['from_step']}"
        lines.append(f"the weights of the checkpoint at step {found['from_step']} led here; {before} looks before it")
    return [*lines, _compared(found["recorded"])]


def _compared(recorded: dict[str, Any] | None) -> str:
    if recorded is None:
        return "the run wrote no row of this step to compare with"
    if recorded["equal"]:
        return f"equal to the row in {recorded['file']}"
    differ = ", ".join(f"{key} {then} -> {now}" for key, (then, now) in recorded["differences"].items())
    return (
        f"differs from the row in {recorded['file']}: {differ} (another device, number of threads or version changes "
        "the last digits)"
    )
