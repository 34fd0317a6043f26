"""What the screen says of evaluations."""

from __future__ import annotations

from pathlib import Path

import pytest

from mst.runtime.storage.results import append_jsonl
from mst.runtime.storage.rundir import RunDir
from mst.train.shown import LatestScores


@pytest.mark.parametrize(
    ("rows", "text"),
    [
        ([], ""),
        ([(0, {"loss": 3.0})], ""),
        ([(0, {"knn_top1": 55.34})], "k-NN 55.3 % (start 55.3)"),
        ([(0, {"knn_top1": 55.34}), (10, {"loss": 1}), (20, {"knn_top1": 62.1})], "k-NN 62.1 % (start 55.3)"),
        ([(20, {"knn_top1": 62.1})], "k-NN 62.1 %"),
        ([(0, {"retrieval_top1": 5}), (9, {"retrieval_top1": 12})], "retrieval 12.0 % (start 5.0)"),
        ([(0, {"knn_top1": 40, "retrieval_top1": 5})], "k-NN 40.0 % (start 40.0)"),
        ([(0, {"knn_top1": None}), (5, {"knn_top1": "no"})], ""),
    ],
)
def test_the_latest_beside_the_start(tmp_path: Path, rows: list[tuple[int, dict[str, object]]], text: str) -> None:
    scores, run = LatestScores(RunDir(tmp_path), step=0), RunDir(tmp_path)
    for step, row in rows:
        scores.observe(step, row)
        append_jsonl(run.metrics, {"step": step, **row})
    assert str(scores) == text
    assert str(LatestScores(run, step=100)) == text  # after a resume


def test_rows_beyond_the_checkpoint_do_not_count(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    for step, accuracy in ((0, 50.0), (10, 60.0), (20, 70.0)):
        append_jsonl(run.metrics, {"step": step, "knn_top1": accuracy})
    assert str(LatestScores(run, step=10)) == "k-NN 60.0 % (start 50.0)"
