"""Does it help? From labelled images to rows, one sentence, report and card; the same after a resume."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from commands.calls import call, image_folder, labelled_folder
from mst.runtime.storage.results import read_jsonl

QUICK = ("--monitor.tensorboard", "false", "--runtime.precision", "fp32", "--runtime.workers", "0")


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return labelled_folder(tmp_path_factory.mktemp("labels") / "set", val=("cat", "dog"))


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return image_folder(tmp_path_factory.mktemp("images") / "set", 200, size=32)


def whiches(run: Path) -> list[str]:
    return [row["protocol"].get("which", row["task"]) for row in read_jsonl(run / "results.jsonl")]


def rights(rows: list[dict[str, Any]]) -> dict[str, str]:
    return {row["protocol"].get("which", row["task"]): row["extra"]["right"] for row in rows}


@pytest.fixture
def run(images: Path, labelled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> tuple[Path, Any, str]:
    out = tmp_path / "run"
    words = ("--data.train", images, "--data.limit", 16, "--out", out, "--monitor.knn-data", labelled)
    answer = call(capsys, "pretrain", "debug", *words, "--train.epochs", 1, "--json", *QUICK)
    assert answer.status == 0, answer.err
    return out, json.loads(answer.out), answer.err


def test_a_run_with_labels_ends_with_a_verdict(run: tuple[Path, Any, str], capsys: pytest.CaptureFixture[str]) -> None:
    out, result, said = run
    assert whiches(out) == ["untrained", "majority", "colour", "pixels", "verdict"]
    rows = read_jsonl(out / "results.jsonl")
    for row in rows[:-1]:
        assert (row["task"], row["extra"]["val_images"]) == ("baseline", 8)
        assert row["metrics"]["top1_se"] > 0
        assert row["backbone"] == f"random:{out}"
    assert rows[1]["metrics"]["top1"] == 50
    sentence = rows[-1]["extra"]["sentence"]
    assert result["verdict"]["sentence"] == sentence
    assert result["verdict"]["call"] == rows[-1]["extra"]["call"] != "helps"  # two steps
    assert result["verdict"]["see"] == "docs/no-improvement.md"
    assert f"does it help? {sentence}" in said
    assert "before training, on 8 validation images: k-NN untrained" in said
    assert "(start " in said
    metrics = [row for row in read_jsonl(out / "metrics.jsonl") if "knn_top1" in row]
    assert [row["knn_top1"] for row in metrics] == [rows[0]["metrics"]["top1"], rows[-1]["metrics"]["knn_top1"]]

    # a report and a card that say it; nothing is compared with a baseline as if it were a network
    assert call(capsys, "report", out).status == 0
    page, card = (out / "report.html").read_text(), (out / "model_card.md").read_text()
    for part in ("no-improvement.md", "k-NN, untrained weights", "majority class"):
        assert part in page
    assert "docs/no" in card
    refused = call(capsys, "compare", out)
    assert refused.status == 2
    assert "holds no results" in refused.line

    # a run that is done says the same again, and measures and writes nothing twice
    again = call(capsys, "pretrain", "--resume", out, "--json")
    assert again.status == 0, again.err
    assert json.loads(again.out)["verdict"] == result["verdict"]
    assert whiches(out) == ["untrained", "majority", "colour", "pixels", "verdict"]

    # what is lost is measured again, the untrained network from the run's seed
    (out / "results.jsonl").unlink()
    assert call(capsys, "pretrain", "--resume", out).status == 0
    assert sorted(whiches(out)) == ["colour", "majority", "pixels", "untrained", "verdict"]
    new = {
        row["protocol"].get("which", row["task"]): row["extra"]["right"] for row in read_jsonl(out / "results.jsonl")
    }
    assert new == {row["protocol"].get("which", row["task"]): row["extra"]["right"] for row in rows}


def test_a_continued_run_is_compared_with_its_start(
    run: tuple[Path, Any, str], images: Path, labelled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "continued"
    words = ("--data.train", images, "--data.limit", 16, "--out", out, "--monitor.knn-data", labelled)
    answer = call(capsys, "pretrain", "debug", *words, "--train.epochs", 1, "--init", run[0], "--json", *QUICK)
    assert answer.status == 0, answer.err
    assert whiches(out) == ["start", "untrained", "majority", "colour", "pixels", "verdict"]
    assert ", at the start " in json.loads(answer.out)["verdict"]["sentence"]


def test_without_labels_it_is_not_known(images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    words = ("--data.train", images, "--data.held-out", 20, "--out", out, "--train.epochs", 0.1, "--json", *QUICK)
    answer = call(capsys, "pretrain", "debug", *words)
    assert answer.status == 0, answer.err
    assert json.loads(answer.out)["verdict"] is None
    assert json.loads((out / "plan.json").read_text())["dataset_size"] == 180
    assert "does it help? not known without labels" in answer.err
    assert "retrieval" in answer.err
    last = [row for row in read_jsonl(out / "metrics.jsonl") if "retrieval_top1" in row][-1]
    assert last["retrieval_images"] == 20
    assert "restore_gain" in last
    assert call(capsys, "report", out).status == 0
    assert "Whether it helps is not known without labels" in (out / "report.html").read_text()


def test_baselines_at_any_time(
    run: tuple[Path, Any, str], labelled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("evaluate", "baselines", "--data", labelled)
    alone = call(capsys, *words, "--out", tmp_path / "out")
    assert alone.status == 0, alone.err
    assert whiches(tmp_path / "out") == ["majority", "colour", "pixels"]
    assert "majority class" in alone.out
    shutil.copytree(run[0], tmp_path / "copy")
    both = call(capsys, *words, "--backbone", tmp_path / "copy", "--json")
    assert both.status == 0, both.err
    found = json.loads(both.out)
    assert found["verdict"]["sentence"] == run[1]["verdict"]["sentence"]
    assert whiches(tmp_path / "copy")[5:] == ["majority", "colour", "pixels", "untrained", "verdict"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--backbone", "random:RUN"), "untrained weights are compared with already: name the trained ones"),
        (("--channels", 0), "--channels 0"),
        (("--seed", -1), "--seed -1: must be at least 0"),
        (("--backbone", "nowhere"), "nowhere does not exist"),
    ],
)
def test_what_baselines_refuse(
    words: tuple[object, ...], message: str, labelled: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    answer = call(capsys, "evaluate", "baselines", "--data", labelled, *words)
    assert answer.status == 2
    assert message in answer.line


def test_baselines_without_a_backbone_write_their_split_down(
    labelled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("evaluate", "baselines", "--data", labelled / "train", "--val-share", 0.5)
    answer = call(capsys, *words, "--out", tmp_path / "b")
    assert answer.status == 0, answer.err
    (table,) = (tmp_path / "b").glob("split-*.csv")
    assert f"the split is in {table}" in " ".join(answer.err.split())
    rows = read_jsonl(tmp_path / "b" / "results.jsonl")
    again = call(capsys, "evaluate", "baselines", "--data", labelled / "train", "--labels", table, "--json")
    assert again.status == 0, again.err
    assert [row["metrics"] for row in json.loads(again.out)["rows"]] == [row["metrics"] for row in rows]
    told = call(capsys, *words)
    assert "the split is not written down: --out DIR keeps it" in " ".join(told.err.split())


@pytest.mark.parametrize(
    ("grey", "words", "name"), [(1, (), "grey"), (1, ("--channels", 3), "colour"), (0, (), "colour")]
)
def test_baselines_without_a_backbone_see_whether_images_are_grey(
    grey: bool, words: tuple[object, ...], name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    draw = np.random.default_rng(0)
    for number in range(20):
        pixels = draw.integers(0, 256, (9, 9, 3), dtype=np.uint8)
        pixels = pixels[..., :1].repeat(3, axis=2) if grey else pixels  # stored as RGB
        path = tmp_path / "set" / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
    answer = call(capsys, "evaluate", "baselines", "--data", tmp_path / "set", *words)
    assert answer.status == 0, answer.err
    assert f"{name} statistics" in answer.out
    assert ("read as one channel" in " ".join(answer.err.split())) == (name == "grey")
