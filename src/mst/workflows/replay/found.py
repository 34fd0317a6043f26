"""What the inspection of a step found: as JSON types, and in lines for a person."""

from __future__ import annotations

import math
import shlex
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from mst.engine.inspection import BLOW_UP, Inspection
from mst.engine.replay import Replay
from mst.runtime.storage.record import bad_steps_file
from mst.runtime.storage.results import read_jsonl
from mst.runtime.storage.rundir import RunDir

LOSSES = ("loss", "self_distillation", "restoration", "grad_norm")
SHOWN = 8


def found_in(
    run: RunDir, step: int, *, begun: int, again: Replay, inspection: Inspection, image: Callable[[int], object]
) -> dict[str, Any]:
    """Return what an inspection found, as JSON types.

    Args:
        run: folder of the training.
        step: the step, from 1.
        begun: step of the checkpoint that it was reached from.
        again: the steps up to it.
        inspection: what it was.
        image: takes a dataset position; returns the path of its image.
    """
    report, found = inspection.report, inspection.found
    numbers = report.scalars()
    pixels = bool(found) and found[0].name.startswith("pixels")
    everyone = len(inspection.images) == len(inspection.indices) and not pixels
    images = [
        {"position": place, "index": inspection.indices[place], "path": str(image(inspection.indices[place]))}
        for place in inspection.images
    ]
    growth = again.growth
    return {
        "run": str(run.root),
        "step": step,
        "from_step": begun,
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
        "weights_blew_up": None if growth is None else {**asdict(growth), "after": _number(growth.after)},
        "recorded": _recorded(run, step, inspection, again),
    }


def _sized(found: tuple[str, float] | None) -> dict[str, Any] | None:
    return None if found is None else {"name": found[0], "size": _number(found[1])}


def _number(value: float) -> float | str:
    """Return a number, or a word in the place of NaN and infinity, which JSON lacks."""
    return value if math.isfinite(value) else str(value)


def _recorded(run: RunDir, step: int, inspection: Inspection, again: Replay) -> dict[str, Any] | None:
    """Compare the step with the row that the run wrote for it; None if there is no row."""
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
    now = {key: remarks.row[key] for key in LOSSES if key in remarks.row}
    differ = {key: [rows[-1].get(key), value] for key, value in now.items() if rows[-1].get(key) != value}
    return {"file": "metrics.jsonl", "equal": not differ, "differences": differ}


def describe(found: dict[str, Any]) -> list[str]:
    """Write what was found for a person, a line each."""
    epoch = f" of epoch {found['epoch']}" if "epoch" in found else ""
    losses = ", ".join(f"{name} {float(value):.9g}" for name, value in found["losses"].items())
    lines = [
        f"step {found['step']}{epoch}, replayed from step {found['from_step']}",
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
