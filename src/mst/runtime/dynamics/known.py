"""What is known to go wrong before the first step: too many prototypes, images that repeat, settings that fail.

None of these limits was fitted to runs of this project. More prototypes than images cannot all be used: in an epoch
each image is nearest to one. Teacher temperatures and center momenta are DINO's (Caron et al. 2021, section 5 and its
appendices). Teacher momentum: BYOL reaches 68.4 % at 0.9 and 72.5 % at 0.99, and nothing at 0 (Grill et al. 2020,
section 5); DINO does not converge with the student of the step before as teacher. Learning rate: a step of Adam moves a
weight by about the rate (Kingma and Ba 2015, section 2.1), and the weights of timm's ViTs begin with a deviation of
0.02.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from mst.runtime import advice
from mst.runtime.dynamics.records import Conditions, Finding
from mst.runtime.dynamics.repair import (
    HIGHEST_RATE,
    HIGHEST_TEMP_RATIO,
    SAFE_CENTER,
    SAFE_MEMORY,
    SAFE_RATE,
    SAFE_TEMP_RATIO,
    SHORTEST_MEMORY,
    SLOWEST_CENTER,
)

FEWEST, MOST_AN_IMAGE = 1024, 4
"""Prototypes that are never too many, and how many of them there may be for each image."""
IMAGES_A_PROTOTYPE, LEAST_FITTING = 2, 256
"""What fits: a power of two, one for so many images at least; and the fewest."""
DIFFERENT = 0.5
"""Share of the images opened before a run that differ from all others; of real sets nearly all do."""


AT_START = 0, 0, None
"""Steps at which such a finding begins, is found and ends."""


def known(config: Mapping[str, Any], plan: Mapping[str, Any], conditions: Conditions) -> list[Finding]:
    """Return what settings and images tell before the first step; the step of each finding is 0.

    Args:
        config: config.json.
        plan: plan.json; of older versions what is not there is not judged.
        conditions: of the two.
    """
    if not conditions.distils:
        return []
    found = [*_prototypes(plan, conditions.images), *_repeated(plan), *_settings(config, plan)]
    moved = _moved(plan)
    return [replace(each, ended=moved.get(each.key)) for each in found]


def _prototypes(plan: Mapping[str, Any], images: int) -> Iterator[Finding]:
    count = _number(plan, "prototypes")
    limit = MOST_AN_IMAGE * max(images, FEWEST // MOST_AN_IMAGE)
    if count > limit:
        fits = max(1 << int(math.log2(max(images // IMAGES_A_PROTOTYPE, 1))), LEAST_FITTING)
        text = f"{count:.0f} prototypes for {images} images (at most {MOST_AN_IMAGE} an image are of use)"
        knob = f"--model.prototypes {fits}"
        yield Finding("many-prototypes", *AT_START, "model.prototypes", count, limit, text, knob)


def _repeated(plan: Mapping[str, Any]) -> Iterator[Finding]:
    opened = plan.get("opened")
    if not isinstance(opened, list | tuple) or len(opened) != 2:
        return
    different, looked_at = opened
    what = f"{different} are" if different > 1 else "one is"
    if different < DIFFERENT * looked_at:
        text = f"of {looked_at} images that were opened only {what} different"
        yield Finding("repeated", *AT_START, "data.train", different, DIFFERENT * looked_at, text, advice.REPEATED)


def _settings(config: Mapping[str, Any], plan: Mapping[str, Any]) -> Iterator[Finding]:
    objective = config["objective"]
    student, teacher = _number(objective, "student_temp"), _number(plan, "teacher_temp")
    most = HIGHEST_TEMP_RATIO * student
    if teacher > most:
        text = f"a teacher temperature of {teacher:g} beside the student's {student:g} makes all outputs uniform"
        yield _setting("teacher-temp", teacher, most, f"{text} (at most {most:g})", SAFE_TEMP_RATIO * student)
    center = _number(objective, "center_momentum")
    if center > SLOWEST_CENTER:
        text = f"a center of momentum {center:g} follows too slowly (at most {SLOWEST_CENTER:g})"
        yield _setting("center-momentum", center, SLOWEST_CENTER, text, SAFE_CENTER)
    momentum, least = _number(objective, "teacher_momentum"), 1 - 1 / SHORTEST_MEMORY  # a derived one fits the run
    if momentum < least:
        text = f"a teacher of momentum {momentum:g} runs after its student (at least {least:.3g})"
        yield _setting("teacher-momentum", momentum, least, text, 1 - 1 / SAFE_MEMORY)
    rate = _number(plan, "lr")
    if rate > HIGHEST_RATE:
        text = f"a learning rate of {rate:g} moves every weight by about as much in a step (at most {HIGHEST_RATE:g})"
        yield _setting("lr", rate, HIGHEST_RATE, text, SAFE_RATE, section="optimizer")


def _setting(name: str, value: float, limit: float, text: str, fits: float, *, section: str = "objective") -> Finding:
    key, knob = f"{section}.{name.replace('-', '_')}", f"--{section}.{name} {fits:g}"
    return Finding("settings", *AT_START, key, value, limit, text, knob)


def _number(values: Mapping[str, Any], key: str) -> float:
    """Return a number; nan, which is beyond no limit, where there is none."""
    value = values.get(key)
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else math.nan


def _moved(plan: Mapping[str, Any]) -> dict[str, int]:
    """Return settings that were moved on the way, by hand or by a repair, and from which step on."""
    rows = [row for row in plan.get("interventions") or () if isinstance(row, Mapping)]
    return {key: int(row["step"]) for row in rows for key in row.get("changed") or () if "step" in row}
