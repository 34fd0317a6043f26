"""Findings: the same while a run is on as afterwards, none in healthy runs, and each where it was provoked."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mst.runtime.dynamics.detectors import findings
from mst.runtime.dynamics.records import CALM, LASTS, Finding
from mst.runtime.dynamics.series import Series
from mst.runtime.storage.results import read_jsonl
from reference.windows import past_mean

RUNS = Path(__file__).parents[3] / "runs"
NOT_HEALTHY = {"deit-small-imagenette128"}
"""k-NN while training ended below its start: this run did not learn, so an alarm would be none too many."""
CONFIG: dict[str, Any] = {
    "objective": {"strategy": "random", "eligible_fraction": 1.0, "mask_probability": 0.3, "restoration_weight": 0.6},
    "train": {"epochs": 50.0},
}
PLAN = {"total_steps": 1000, "dataset_size": 1000, "batch_size": 64}
MAX = math.log(1024)


def healthy_rows(every: int = 10, total: int = 1000) -> list[dict[str, Any]]:
    """A run whose loss falls, rises a little and settles."""
    return [
        {
            "step": step,
            "self_distillation": 4.5 + 2 * math.exp(-step / 50) - math.exp(-((step - 120) ** 2) / 5000),
            "teacher_entropy": 2.5 + math.exp(-step / 40),
            "marginal_entropy": 5.0,
            "max_entropy": MAX,
            "feature_std": 0.5,
            "rankme": 30.0,
            "masked_share": 0.3,
            "psnr_masked": 18 - 7 * math.exp(-step / 80),
            "psnr_fill": 15.0,
        }
        for step in range(every, total + 1, every)
    ]


def found_in(rows: list[dict[str, Any]]) -> list[Finding]:
    return findings(rows, CONFIG, PLAN)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 9), st.floats(-5, 5) | st.just(math.nan)), min_size=1, max_size=40),
    st.floats(0.01, 1.0),
    st.integers(1, 5),
)
def test_window_means(gaps: list[tuple[int, float]], share: float, rows: int) -> None:
    steps = [float(step) for step in np.cumsum([gap for gap, _ in gaps])]
    values = [value for _, value in gaps]
    series = Series([{"step": step, "x": value} for step, value in zip(steps, values, strict=True)], int(steps[-1]))
    found = series.mean(series.column("x"), share, rows=rows)
    np.testing.assert_allclose(found, past_mean(steps, values, share * steps[-1], rows), atol=1e-9)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_what_is_found_does_not_depend_on_what_comes_later(seed: int) -> None:
    draw = np.random.default_rng(seed)
    rows = healthy_rows()
    for row in rows:
        for key in ("self_distillation", "teacher_entropy", "marginal_entropy", "feature_std", "rankme", "psnr_masked"):
            row[key] *= float(draw.choice([0.02, 0.5, 1.0, 1.7])) if draw.random() < 0.5 else 1.0
        if draw.random() < 0.1:
            row["knn_top1"] = float(draw.uniform(20, 60))
    whole = found_in(rows)
    for length in range(1, len(rows) + 1, 7):
        now = rows[length - 1]["step"]
        part = found_in(rows[:length])
        known = [each for each in whole if each.found <= now]
        assert [(e.kind, e.began, e.found, e.value) for e in part] == [
            (e.kind, e.began, e.found, e.value) for e in known
        ]


def _without_end(finding: Finding) -> Finding:
    return replace(finding, ended=None)


def test_no_false_alarm_in_the_committed_runs() -> None:
    healthy = sorted(path.parent for path in RUNS.rglob("metrics.jsonl"))
    healthy = [run for run in healthy if run.name not in NOT_HEALTHY]
    assert len(healthy) >= 20
    for run in healthy:
        rows = read_jsonl(run / "metrics.jsonl")
        config = json.loads((run / "config.json").read_text())
        plan = run / "plan.json"
        derived = json.loads(plan.read_text()) if plan.exists() else {**PLAN, "total_steps": rows[-1]["step"]}
        assert findings(rows, config, derived) == [], run


SOON_BY_ROWS = {"rate-x30-no-warm-up", "no-clip-rate-x30", "momentum-0", "teacher-temperature-0.1", "all-masked"}
SOON = {*SOON_BY_ROWS, "momentum-0.9", "center-stands-still", "one-image", "two-images", "K-65536"}
"""Found within a tenth of the run: by what its rows say, or before the first step."""
PROVOKED = sorted((Path(__file__).parent / "provoked").glob("*.json"))


@pytest.mark.parametrize("path", PROVOKED, ids=lambda path: path.stem)
def test_provoked_runs_are_found(path: Path) -> None:
    """Rows of the runs of benchmarks/dynamics.py, four digits each."""
    run = json.loads(path.read_text())
    rows = [dict(zip(run["keys"], values, strict=True)) for values in run["rows"]]
    found = findings(rows, run["config"], run["plan"])
    assert {each.kind for each in found} >= set(run["kinds"])
    assert bool(found) == bool(run["kinds"])
    assert not (found and path.stem.startswith("healthy"))
    if path.stem in SOON:
        assert found[0].found <= 0.1 * run["plan"]["total_steps"]
    if path.stem in SOON_BY_ROWS:
        assert min(each.found for each in found if each.found) <= 0.1 * run["plan"]["total_steps"]


CHANGES: dict[str, tuple[dict[str, float], str]] = {
    "uniform": ({"teacher_entropy": 0.95 * MAX, "marginal_entropy": MAX, "self_distillation": MAX}, "teacher_entropy"),
    "constant": ({"teacher_entropy": 2.5, "marginal_entropy": 2.6}, "marginal_entropy"),
    "few-prototypes": ({"teacher_entropy": 0.1, "marginal_entropy": 0.9}, "marginal_entropy"),
    "lost": ({"self_distillation": 9.0}, "self_distillation"),
    "flat": ({"feature_std": 0.05}, "feature_std"),
    "rank": ({"rankme": 1.5}, "rankme"),
    "over-masked": ({"masked_share": 0.9}, "masked_share"),
    "under-masked": ({"masked_share": 0.01}, "masked_share"),
    "hidden": ({"psnr_masked": 13.0}, "psnr_masked"),
}


@pytest.mark.parametrize("kind", CHANGES)
def test_each_kind_is_found_soon_and_ends(kind: str) -> None:
    rows, (change, key) = healthy_rows(), CHANGES[kind]
    assert found_in(rows) == []
    for row in rows:
        if 500 <= row["step"] < 700:
            row.update(change)
    found = [each for each in found_in(rows) if each.kind == kind]
    assert found, kind
    first = found[0]
    assert first.key == key
    assert 500 <= first.found <= 600
    assert first.began <= first.found - 10 * (LASTS - 1)
    assert first.ended is not None
    assert first.ended <= 700 + 1000 * (CALM + 0.27)
    assert first.line.startswith(f"dynamics at step {first.found}: ")
    assert "--" in first.knob


def test_a_nearly_uniform_output_that_the_student_foretells_is_none() -> None:
    rows = healthy_rows()
    for row in rows:
        if 100 <= row["step"] < 300:
            row.update({"teacher_entropy": 0.85 * MAX, "marginal_entropy": 0.95 * MAX, "self_distillation": 0.9 * MAX})
    assert [each for each in found_in(rows) if each.kind == "uniform"] == []


def test_few_images_are_blamed_for_a_score_that_falls() -> None:
    rows = healthy_rows() + [
        {"step": step, "knn_top1": score}
        for step, score in zip(range(100, 1001, 100), (40, 45, 50, 52, 52, 45, 44, 43, 42, 42), strict=True)
    ]
    rows.sort(key=lambda row: row["step"])
    [finding] = found_in(rows)
    assert (finding.kind, finding.found) == ("few-images", 800)
    assert not finding.repairable


@pytest.mark.parametrize("config", [{}, {"objective": 3}, {"objective": {"eligible_fraction": "x"}, "train": {}}])
def test_other_runs_have_no_findings(config: dict[str, Any]) -> None:
    assert findings(healthy_rows(), config, PLAN) == []
    assert findings([{"step": 1}, {"step": True}, {"loss": 3}], CONFIG, PLAN) == []
    assert findings(healthy_rows(), CONFIG, {}) == []
