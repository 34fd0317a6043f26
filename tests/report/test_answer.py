"""The answer at the top of a report: of the newest sound verdict, or what is known without labels."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mst.report.page import write_report
from mst.report.reading import read_run
from mst.report.verdict import RANKED, answer, ranked_as_knn
from mst.runtime.storage.results import append_jsonl
from mst.runtime.storage.rundir import RunDir

MEASURED = Path(__file__).parents[2] / "benchmarks" / "results" / "label_free.json"
DIFFERENCE = {"which": "untrained", "top1": 40.0, "points": 5.0, "se": 1.0, "clear": True}


def verdict(**extra: Any) -> dict[str, Any]:
    said = {"call": "helps", "sentence": "k-NN 45.0 % & so on", "differences": [DIFFERENCE], "val_images": 10}
    return {"task": "verdict", "metrics": {"knn_top1": 45.0, "knn_top1_se": 2.0}, "extra": said | extra}


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    run = RunDir(tmp_path / "mine")
    run.root.mkdir()
    run.config.write_text(json.dumps({"objective": {}, "data": {"channels": 3}}))
    return run


@pytest.mark.parametrize(
    ("call", "tone", "chip"),
    [
        ("helps", "good", False),
        ("no better", "neutral", True),
        ("unclear", "neutral", True),
        ("worse", "bad", True),
    ],
)
def test_every_call_has_a_tone(run: RunDir, call: str, tone: str, chip: bool) -> None:
    append_jsonl(run.results, verdict(call=call))
    found = answer(read_run(run))
    assert found is not None
    assert (found.tone, found.images) == (tone, 10)
    assert [bar.name for bar in found.bars] == ["k-NN, this backbone", "k-NN, untrained weights"]
    page = write_report(run).read_text(encoding="utf-8")
    assert f'class="verdict {tone}"' in page
    assert "k-NN 45.0 % &amp; so on" in page
    assert ("no improvement</span>" in page) is chip
    assert "k-NN 45.0 %" in (run.root / "model_card.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "damage",
    [
        {"call": "maybe"},
        {"call": ["helps"]},
        {"sentence": 3},
        {"differences": "none"},
        {"differences": [3, {"which": []}, {"which": "untrained", "top1": "x"}]},
        {"val_images": "ten"},
    ],
)
def test_damaged_rows_are_passed_over_or_shown_without_what_is_damaged(run: RunDir, damage: dict[str, Any]) -> None:
    append_jsonl(run.results, verdict(call="worse"))
    append_jsonl(run.results, verdict(**damage))
    found = answer(read_run(run))
    assert found is not None
    assert found.tone == ("bad" if "call" in damage or "sentence" in damage else "good")
    write_report(run)


def test_without_labels_nothing_is_claimed(run: RunDir) -> None:
    assert answer(read_run(run)) is None
    for step, found_again in ((0, 5.0), (100, 25.0)):
        row = {"step": step, "retrieval_top1": found_again, "retrieval_images": 200, "restore_gain": 1.25}
        append_jsonl(run.metrics, row)
    found = answer(read_run(run))
    assert found is not None
    assert found.tone == "neutral"
    assert not found.bars
    for part in (
        "25.0 %",
        "start 5.0",
        "chance 0.5",
        "+1.2 dB",
        "docs/no-improvement.md",
        ranked_as_knn("retrieval_top1"),
    ):
        assert part in found.sentence
    append_jsonl(run.metrics, {"step": 100, "knn_top1": 50.0})
    assert answer(read_run(run)) is None  # labels were there; the verdict is missing


def test_correlations_are_those_that_were_measured() -> None:
    measured = json.loads(MEASURED.read_text())["correlation_with_knn"]
    for metric, (rho, se, runs) in RANKED.items():
        assert (round(measured[metric]["rho"], 2), round(measured[metric]["rho_se"], 2)) == (rho, se)
        assert measured[metric]["runs"] == runs >= 20
        assert f"rho {rho:.2f}" in ranked_as_knn(metric)
