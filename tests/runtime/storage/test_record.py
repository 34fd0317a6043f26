"""Rows on disk: none twice, none lost, also for TensorBoard."""

from __future__ import annotations

import io
import json
import time
from pathlib import Path

import pytest
from rich.console import Console

from mst.runtime import logging
from mst.runtime.progress import TrainingProgress, clock, describe_loss
from mst.runtime.storage.record import RunRecord, bad_steps_file, drop_rows
from mst.runtime.storage.rundir import RunDir
from mst.train.pretraining import describe

NUMBERS = {
    "loss": 1.25,
    "self_distillation": 1.0,
    "restoration": 0.5,
    "lr": 1e-4,
    "images_per_second": 99.6,
    "data_wait": 0.031,
}


def test_rows_beyond_a_step_are_dropped_and_the_rest_is_untouched(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    kept = '{"step": 1, "loss":   NaN}\n{"step": 2}\n{"step": 2, "knn_top1": 5}\n'
    path.write_text(kept + '{"step": 3}\n{"st')
    drop_rows(path, beyond=2)
    assert path.read_text() == kept
    drop_rows(path, beyond=-1)
    assert path.read_text() == ""
    drop_rows(tmp_path / "none.jsonl", beyond=0)
    assert not (tmp_path / "none.jsonl").exists()


def test_a_new_record_continues_the_old_one(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    for step in (0, 2):
        record = RunRecord(run, step=step, tensorboard=False)
        for number in (step + 1, step + 2, step + 3):
            record.metrics({"step": number, "loss": float("nan"), "from": step})
            record.bad_step({"step": number})
        record.flush()
        record.close()
    rows = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    assert [(row["step"], row["from"]) for row in rows] == [(1, 0), (2, 0), (3, 2), (4, 2), (5, 2)]
    assert rows[0]["loss"] is None
    assert len(bad_steps_file(run).read_text().splitlines()) == 5


def test_tensorboard_shows_each_step_once(tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    run = RunDir(tmp_path)
    for step in (0, 2):
        if step:
            time.sleep(1.1)  # files are read in the order of the second in their names, then of a counter's digits
        record = RunRecord(run, step=step, tensorboard=True)
        for number in (step + 1, step + 2, step + 3):
            record.metrics({"step": number, "loss": float(step), "psnr_masked": None})
        record.flush()
        record.close()
    events = accumulator.EventAccumulator(str(run.tensorboard)).Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(1, 0), (2, 0), (3, 2), (4, 2), (5, 2)]
    assert events.Tags()["scalars"] == ["loss"]


def test_plain_lines_away_from_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with TrainingProgress("training", describe_loss, step=0, total_steps=3) as progress:
        for step in (1, 2, 3):
            progress.show(step, NUMBERS)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2  # the first, none between, the last
    assert lines[-1].startswith("step 3/3")
    assert "loss 1.250" in lines[-1]
    assert "100 img/s  wait 3%" in lines[-1]


def test_the_time_left_is_without_the_start_and_anew_after_going_back(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = iter((100.0, 149.0, 160.0, 170.0))  # fresh weights were scored until second 99
    monkeypatch.setattr(time, "perf_counter", lambda: next(now))
    with TrainingProgress("training", describe_loss, step=0, total_steps=70) as progress:
        for step in (1, 50, 10, 20):  # a step a second; back at second 160
            progress.show(step, NUMBERS)
            progress._last_line = -1e9
    lines = capsys.readouterr().err.splitlines()
    assert [line.partition("eta ")[2] for line in lines] == ["", "0:00:20", "", "0:00:50"]


def test_the_bar_fits_into_80_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = io.StringIO()
    monkeypatch.setattr(logging, "console", Console(file=screen, force_terminal=True, width=80, color_system=None))
    with TrainingProgress("training", describe, step=0, total_steps=195_000) as progress:
        progress.show(100_000, NUMBERS)
    assert "100000/195000" in screen.getvalue()
    assert describe(NUMBERS) in screen.getvalue()
    assert "…" not in screen.getvalue()


def test_describe_and_clock() -> None:
    assert describe_loss(NUMBERS) == "loss 1.250  lr 1.0e-04  100 img/s  wait 3%"
    assert describe(NUMBERS).endswith("lr 1.0e-04  100 img/s  wait 3%")
    assert [clock(s) for s in (0, 59.6, 3661)] == ["0:00:00", "0:01:00", "1:01:01"]


def test_damaged_rows_are_dropped_and_the_others_kept(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    good = [b'{"step": 1}\n', b'{"step": 2, "name": "\xe2\x80\xa8"}\n']
    bad = [b'{"step": 1, "x": "\xff"}\n', b"[" * 9000 + b"\n", b'{"step": 1e999}\n']
    bad.append(b'{"step": ' + b"9" * 5000 + b"}\n")
    path.write_bytes(good[0] + b"".join(bad) + good[1] + b'{"step": 1')
    drop_rows(path, beyond=5)
    assert path.read_bytes() == b"".join(good)
