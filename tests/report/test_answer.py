"""The answer at the top of a report: of the newest sound verdict, or what is known without labels."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from mst.report.compare import compare_results
from mst.report.datasets import data_names
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


def test_the_runs_own_verdict_comes_first_and_others_say_of_what_they_are(run: RunDir) -> None:
    def of(path: str, digest: str, **extra: Any) -> dict[str, Any]:
        return verdict(**extra) | {"data_identity": {"name": path, "count": 3, "digest": digest, "parts": {}}}

    append_jsonl(run.results, of("/x/cells", "a" * 32, call="worse", sentence="the run's own", step=9, classes=2))
    append_jsonl(run.results, of("/x/cells", "b" * 32, sentence="an older one", classes=4))
    append_jsonl(run.results, of("/x/cells", "b" * 32, sentence="another", classes=4))
    append_jsonl(run.results, of("/x/cells", "a" * 32, sentence="the same data again", classes=2))
    found = answer(read_run(run))
    assert found is not None
    assert (found.tone, found.sentence) == ("bad", "On cells (content aaaaaa) (2 classes): the run's own")
    assert found.also == ("On cells (content bbbbbb) (4 classes): another",)


def test_results_of_weights_that_are_gone_are_not_shown(run: RunDir) -> None:
    run.backbone.write_bytes(b"new weights")
    now = hashlib.sha256(b"new weights").hexdigest()
    gone = {"task": "knn", "metrics": {"top1": 72.0}, "backbone": "runs/mine", "backbone_sha256": "0" * 64}
    append_jsonl(run.results, gone)
    for row in (
        {"task": "knn", "metrics": {"top1": 71.0}, "backbone": "runs/mine", "backbone_sha256": now},
        {"task": "linear", "metrics": {"top1": 60.0}, "backbone": "timm:vit_x", "backbone_sha256": "2" * 64},
        {"task": "linear", "metrics": {"top1": 61.0}, "backbone_sha256": ["damaged"]},
        {"task": "knn", "metrics": {"top1": 50.0}, "backbone": "random:x", "backbone_sha256": ""},
        {"task": "finetune", "metrics": {"top1": 80.0}, "backbone_sha256": "1" * 64},
    ):
        append_jsonl(run.results, row)
    records = read_run(run)
    assert (len(records.results), records.outdated) == (5, 1)
    page = write_report(run).read_text(encoding="utf-8")
    assert "Not shown: 1 row of results.jsonl, of other weights than the run has now." in page
    assert "72.0" not in page
    values = {line.task: line.values for line in compare_results([run.root]).lines}
    assert values["knn"] == (50.0, 71.0)
    run.backbone.unlink()
    assert read_run(run).outdated == 0


def test_labels_from_several_tables_are_told_apart() -> None:
    def row(digest: str, labels: str | None) -> dict[str, Any]:
        split = {"labels": labels} if labels else {"part": "val"}
        identity = {"name": "/x/photos", "count": 3, "digest": digest * 32, "parts": {}}
        return {"data_identity": identity, "extra": {"split": split}}

    rows = [
        row("a", "one.csv, column label"),
        row("b", None),
        row("c", "two.csv, column y"),
        row("d", "two.csv, column y"),
    ]
    assert list(data_names(rows).values()) == [
        "photos (one.csv, column label)",
        "photos (names of folders)",
        "photos (content cccccc)",
        "photos (content dddddd)",
    ]
