"""`--compare`: an evaluation ends with one sentence, and measures nothing that lies beside it already."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from commands.calls import call
from commands.test_evaluate import WORDS, backbone, labelled, run_folder
from commands.test_segmentation import data
from evaluate.segmenters import vit
from mst.model.backbone_file import save_backbone
from mst.runtime.storage.results import read_jsonl

__all__ = ["backbone", "data", "labelled", "run_folder"]
LINEAR = ("--epochs", "2", "--lrs", "0.1", "--blocks", "1")


def tasks(run: Path) -> list[tuple[str, bool]]:
    rows = read_jsonl(run / "results.jsonl")
    return [(row["protocol"].get("which", row["task"]), row["backbone"].startswith("random:")) for row in rows]


def test_a_linear_probe_ends_with_a_sentence(
    run_folder: Path, labelled: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("evaluate", "linear", "--backbone", run_folder, "--data", labelled, *LINEAR, *WORDS)
    alone = call(capsys, *words)
    assert alone.status == 0, alone.err
    assert "does it help? not compared: --compare measures" in alone.out
    answer = call(capsys, *words, "--compare")
    assert answer.status == 0, answer.err
    beside = [("linear", True), ("majority", True), ("colour", True), ("pixels", True)]
    assert tasks(run_folder) == [("linear", False), *beside, ("linear", False)]
    verdict: dict[str, Any] = read_jsonl(run_folder / "results.jsonl")[-1]["extra"]["verdict"]
    assert verdict["sentence"].startswith("linear probe ")
    assert f"does it help? {verdict['sentence'][:40]}" in " ".join(answer.out.split())
    assert [each["which"] for each in verdict["differences"]] == ["untrained", "colour", "pixels", "majority"]
    assert all(each["paired"] and each["top1_se"] > 0 for each in verdict["differences"])
    again = call(capsys, *words, "--compare", "--json")
    assert json.loads(again.out)["extra"]["verdict"] == verdict
    assert tasks(run_folder) == [("linear", False), *beside, *[("linear", False)] * 2]
    other = call(capsys, *words, "--compare", "--seed", "1", "--json")  # other draws: colours are the same
    assert other.status == 0, other.err
    assert tasks(run_folder)[-2:] == [("linear", True), ("linear", False)]


def test_retrieval_has_no_verdict(run_folder: Path, labelled: Path, capsys: pytest.CaptureFixture[str]) -> None:
    answer = call(capsys, "evaluate", "retrieval", "--backbone", run_folder, "--data", labelled, *WORDS, "--compare")
    assert answer.status == 2
    assert "--compare" in answer.line


def test_patches_are_compared_with_their_colours(
    tmp_path: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "segmenter"
    run.mkdir()
    (run / "config.json").write_text("{}")
    save_backbone(run / "backbone.safetensors", vit().eval(), {})
    words = ("evaluate", "segmentation", "--backbone", run, "--data", data, "--size", "32", "48", *WORDS)
    few = ("--steps", "40", "--picture-limit", "0", "--compare")
    answer = call(capsys, *words, *few)
    assert answer.status == 0, answer.err
    assert tasks(run) == [("patch_segmentation", True), ("colour", True), ("patch_segmentation", False)]
    rows = read_jsonl(run / "results.jsonl")
    assert rows[1]["metrics"]["miou"] > 80  # the classes are dark and bright
    verdict = rows[-1]["extra"]["verdict"]
    assert verdict["sentence"].startswith("linear segmentation of patches, mean IoU ")
    assert [each["which"] for each in verdict["differences"]] == ["untrained", "colour"]
    assert not any(each["paired"] for each in verdict["differences"])
    assert call(capsys, *words, *few).status == 0
    assert len(tasks(run)) == 4
