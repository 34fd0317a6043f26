"""What is known before the first step: each limit from both sides, and nothing of healthy or older runs."""

from __future__ import annotations

from typing import Any

import pytest

from mst.runtime.dynamics.detectors import foreseen
from mst.runtime.dynamics.records import Finding

CONFIG: dict[str, Any] = {
    "objective": {"student_temp": 0.1, "center_momentum": 0.9, "distillation_weight": 1.0},
    "train": {"epochs": 5.0},
}
PLAN: dict[str, Any] = {
    "total_steps": 100,
    "dataset_size": 1000,
    "batch_size": 64,
    "prototypes": 1024,
    "lr": 0.002,
    "teacher_temp": 0.04,
    "teacher_momentum": 0.9,  # derived for a short run: not judged
    "opened": [32, 32],
}


def found(*, objective: dict[str, Any] | None = None, **plan: Any) -> list[Finding]:
    return foreseen({**CONFIG, "objective": {**CONFIG["objective"], **(objective or {})}}, {**PLAN, **plan})


def test_a_usual_run_and_an_older_one_are_not_warned_of() -> None:
    assert found() == []
    assert foreseen(CONFIG, {key: PLAN[key] for key in ("total_steps", "dataset_size", "batch_size")}) == []
    assert found(opened=None) == []
    assert found(prototypes=65536, objective={"distillation_weight": 0.0}) == []


@pytest.mark.parametrize(
    ("images", "most", "fits"), [(1000, 4000, 256), (5000, 20000, 2048), (100, 1024, 256), (50_000, 200_000, 16384)]
)
def test_prototypes_are_measured_against_images(images: int, most: int, fits: int) -> None:
    assert found(dataset_size=images, prototypes=most) == []
    [finding] = found(dataset_size=images, prototypes=2 * most)
    assert (finding.kind, finding.found, finding.key) == ("many-prototypes", 0, "model.prototypes")
    assert finding.line == (
        f"dynamics before the first step: {2 * most} prototypes for {images} images (at most 4 an image are of use): "
        f"--model.prototypes {fits}"
    )
    assert found(dataset_size=images, prototypes=fits) == []


def test_images_that_repeat() -> None:
    assert found(opened=[16, 32]) == []
    [finding] = found(opened=[1, 32])
    assert finding.kind == "repeated"
    assert "of 32 images that were opened only one is different" in finding.text
    assert not finding.repairable


@pytest.mark.parametrize(
    ("objective", "plan", "key", "knob"),
    [
        ({}, {"teacher_temp": 0.1}, "objective.teacher_temp", "--objective.teacher-temp 0.04"),
        ({"center_momentum": 0.9999}, {}, "objective.center_momentum", "--objective.center-momentum 0.9"),
        ({"teacher_momentum": 0.9}, {}, "objective.teacher_momentum", "--objective.teacher-momentum 0.975"),
        ({}, {"lr": 0.03}, "optimizer.lr", "--optimizer.lr 0.002"),
    ],
)
def test_settings_that_are_known_to_fail(objective: dict[str, Any], plan: dict[str, Any], key: str, knob: str) -> None:
    [finding] = found(objective=objective, **plan)
    assert (finding.kind, finding.key, finding.knob, finding.ended) == ("settings", key, knob, None)
    moved = {"interventions": [{"step": 40, "changed": {key: [0, 1]}}]}
    [finding] = found(objective=objective, **plan, **moved)
    assert finding.ended == 40


@pytest.mark.parametrize("plan", [{"teacher_temp": 0.07}, {"lr": 0.02}, {"prototypes": 4000}, {"opened": [30, 32]}])
def test_what_is_within_its_limit(plan: dict[str, Any]) -> None:
    assert found(**plan) == []
