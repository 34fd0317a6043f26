"""A report says what went wrong on the way, marks it in the curves and draws what was left."""

from __future__ import annotations

import json
import re
from pathlib import Path

from mst.report.curves import chart_groups
from mst.report.health import checks
from mst.report.page import write_report
from mst.report.plots import draw
from mst.report.reading import read_run
from mst.runtime.storage.results import append_jsonl
from mst.runtime.storage.rundir import RunDir
from report.test_report import CONFIG, PLAN, metrics_row


def test_what_went_wrong_is_said_and_marked(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    tmp_path.joinpath("config.json").write_text(json.dumps(CONFIG))
    tmp_path.joinpath("plan.json").write_text(json.dumps(PLAN))
    for step in range(2, 101, 2):
        wrong = {"teacher_entropy": 6.6, "marginal_entropy": 6.9} if step >= 40 else {}
        append_jsonl(run.metrics, {**metrics_row(step), **wrong})
    changed = {"optimizer.lr": [0.01, 0.0025]}
    row = {"number": 1, "kind": "lost", "text": "it rose", "began": 10, "found": 30, "back": 0, "changed": changed}
    append_jsonl(run.repairs, row)
    left = tmp_path / "abandoned/repair_1"
    left.mkdir(parents=True)
    for step in range(2, 31, 2):
        append_jsonl(left / "metrics.jsonl", {**metrics_row(step), "self_distillation": 3.0})
    records = read_run(run)
    found = "\n".join(check.text for check in checks(records, []))
    assert re.search(r"^From step 4\d on \(found at step \d+\), .*--objective.teacher-temp", found, re.MULTILINE)
    assert "Repair 1: at step 30 it rose; the run went back to step 0" in found
    assert "optimizer.lr 0.01 -> 0.0025" in found
    assert "No collapse" not in found
    charts = {chart.title: chart for group in chart_groups(records) for chart in group.charts}
    assert 40 <= charts["Entropy of the teacher"].marks[0][0] < 50
    assert charts["Loss"].series[-1].faint
    assert "var(--bad)" in draw(charts["Entropy of the teacher"])
    assert "Marked: from step 4" in write_report(run).read_text()
