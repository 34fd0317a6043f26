"""`mst compare`: same protocols on one line, different ones apart, differences, plot, and mistakes as one line."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from commands.calls import call
from mst.report.compare import compare_results
from mst.runtime.identity import identify
from mst.runtime.storage.results import Result, append_jsonl


def add(folder: Path, task: str, backbone: str = "run", val_images: int = 10, **metrics: Any) -> Path:
    protocol = {"k": metrics.pop("k", 20), "transform": {"size": metrics.pop("size", [32, 32])}}
    row = Result(task, metrics, protocol, backbone, extra={"val_images": val_images}).row()
    append_jsonl(folder / "results.jsonl", row)
    return folder


@pytest.fixture
def runs(tmp_path: Path) -> tuple[Path, Path]:
    first = add(tmp_path / "a" / "first", "knn", top1=40.0, top5=60.0)
    add(first, "knn", top1=50.0, top5=70.0)  # of repeated evaluations the last counts
    add(first, "knn", "random:run", top1=30.0)
    add(first, "patch_segmentation", miou=20.0, aacc=80.0, macc=30.0)
    second = add(tmp_path / "second", "knn", top1=55.5, top5=75.0)
    add(second, "detection", ap_box=12.5, ap_mask=10.0, ap_box_50=30.0)
    add(second, "objectness", jaccard=31.0, corloc=22.0, size=[64, 64])
    return first, second


def test_table_and_differences(runs: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    answer = call(capsys, "compare", *runs, "--json")
    assert answer.status == 0, answer.err
    table = json.loads(answer.out)
    assert table["columns"] == ["first (untrained)", "first", "second"]
    lines = {(line["task"], line["metric"]): line for line in table["lines"]}
    assert lines["knn", "top1"]["values"] == [30.0, 50.0, 55.5]
    assert lines["knn", "top1"]["differences"] == [0.0, 20.0, 25.5]
    assert lines["detection", "ap_box"]["values"] == [None, None, 12.5]
    assert ("knn", "top5") not in lines
    assert {task for task, _ in lines} == {"knn", "patch_segmentation", "detection", "objectness"}
    answer = call(capsys, "compare", *runs)
    assert "55.5 ± 15.7 (+25.5 ± 21.4, within noise)" in answer.out  # ten images
    assert lines["knn", "top1"]["within_noise"] == [None, True, True]
    assert "k-NN classification, top-1 " in answer.out


def test_two_protocols_never_share_a_line(runs: tuple[Path, Path]) -> None:
    first, second = runs
    add(second, "patch_segmentation", miou=90.0, size=[64, 64])
    add(second, "patch_segmentation", miou=95.0, val_images=11)
    lines = [line for line in compare_results([first, second]).lines if line.metric == "miou"]
    assert [line.values for line in lines] == [(None, 20.0, None), (None, None, 90.0), (None, None, 95.0)]
    assert lines[1].settings == {"transform.size": [64, 64], "val_images": 10}
    assert lines[1].title.endswith("mean IoU (transform.size 64 x 64, val_images 10)")


def test_two_data_sets_never_share_a_line(tmp_path: Path) -> None:
    one, two = (
        Result("knn", {"top1": value}, {}, backbone="run", data=name) for value, name in ((1.0, "a"), (2.0, "b"))
    )
    append_jsonl(tmp_path / "first" / "results.jsonl", one.row())
    append_jsonl(tmp_path / "second" / "results.jsonl", two.row())
    lines = compare_results([tmp_path / "first", tmp_path / "second"]).lines
    assert [(line.values, line.settings) for line in lines] == [
        ((1.0, None), {"data": "a"}),
        ((None, 2.0), {"data": "b"}),
    ]
    append_jsonl(tmp_path / "second" / "results.jsonl", one.row())
    lines = compare_results([tmp_path / "first", tmp_path / "second"]).lines
    assert lines[0].values == (1.0, 1.0)
    assert lines[0].title == "k-NN classification, top-1 (data a)"


def test_every_metric_and_a_plot(runs: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    answer = call(capsys, "compare", *runs, "--all", "--json", "--plot", tmp_path / "new" / "bars.svg")
    assert answer.status == 0, answer.err
    assert "ap_box_50" in answer.out
    assert "</svg>" in (tmp_path / "new" / "bars.svg").read_text()


def test_mistakes(runs: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    for words, message in (
        ([], "name runs to compare"),
        ([tmp_path / "nowhere"], "does not exist: name run folders"),
        ([tmp_path / "empty"], "holds no results: run mst evaluate"),
        ([runs[0], runs[0] / "results.jsonl"], "the same run is named twice"),
        ([runs[0], "--plot", "x.txt"], "name a file that ends in .png, .svg, .pdf"),
        ([runs[0], "--jsn"], "unknown option --jsn; did you mean --json?"),
    ):
        answer = call(capsys, "compare", *words)
        assert (answer.status, message in answer.line) == (2, True), answer.err


def row_of(path: Path, content: str, value: float, *, seed: int = 0, **protocol: Any) -> dict[str, Any]:
    identity = identify(str(path), [os.fsencode(content)], count=1).row()
    return Result("knn", {"top1": value}, protocol, "run", seed=seed, data=path.name, data_identity=identity).row()


def test_data_of_one_name_are_told_apart_and_copies_are_one(tmp_path: Path) -> None:
    rows = {
        "one": row_of(Path("/d/one/data"), "a", 1.0),
        "two": row_of(Path("/d/two/data"), "b", 2.0),
        "copy": row_of(Path("/elsewhere/photos"), "a", 3.0),
        "changed": row_of(Path("/d/two/data"), "c", 4.0),
        "old": {**row_of(Path("/x/data"), "d", 5.0), "data_identity": {}},
    }
    for name, row in rows.items():
        append_jsonl(tmp_path / name / "results.jsonl", row)
    lines = compare_results([tmp_path / name for name in rows]).lines
    assert [line.values for line in lines] == [
        (1.0, None, 3.0, None, None),
        (None, 2.0, None, None, None),
        (None, None, None, 4.0, None),
        (None, None, None, None, 5.0),
    ]
    names = [line.settings["data"] for line in lines]
    assert names[0] == "one/data"
    assert names[1] != names[2]
    assert all(name.startswith("data (content ") for name in names[1:3])
    assert names[3] == "data (an older row, content unknown)"


def test_annotation_files_are_named_with_their_folder(tmp_path: Path) -> None:
    for name in ("train", "valid"):
        append_jsonl(tmp_path / name / "results.jsonl", row_of(Path(f"/r/{name}/_annotations.coco.json"), name, 1.0))
    lines = compare_results([tmp_path / "train", tmp_path / "valid"]).lines
    assert [line.settings["data"] for line in lines] == [
        "train/_annotations.coco.json",
        "valid/_annotations.coco.json",
    ]


def test_seeds_of_drawn_labels_are_not_mixed(tmp_path: Path) -> None:
    few = {"labels": {"train_share": 0.1, "train_per_class": None}}
    every = {"labels": {"train_share": 1.0, "train_per_class": None}}
    for name, seeds in (("a", (0, 1)), ("b", (1,))):
        for seed in seeds:
            for labels in (few, every):
                row = row_of(Path("/d"), "x", 10.0 * seed + (name == "b"), seed=seed, **labels)
                append_jsonl(tmp_path / name / "results.jsonl", row)
    lines = compare_results([tmp_path / "a", tmp_path / "b"]).lines
    found = {(line.settings["labels.train_share"], line.settings.get("seed")): line.values for line in lines}
    assert found == {(0.1, 0): (0.0, None), (0.1, 1): (10.0, 11.0), (1.0, None): (10.0, 11.0)}


def test_odd_names(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = [os.fsdecode(name) for name in (b"b[old]", b"\xff", b":smile:", b"a\nb", b"[bold]x")]
    for name in names:
        append_jsonl(tmp_path / name / "results.jsonl", row_of(Path("/d[x]") / name, name, 1.0))
    answer = call(capsys, "compare", *(tmp_path / name for name in names))
    assert answer.status == 0, answer.err
    for shown in ("b[old]", "[bold]x", "\\xff", ":smile:", "data b[old]", r"a\nb"):
        assert shown in answer.out


def test_a_plot_replaces_plots_only(
    runs: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "photo.png").write_bytes(b"mine")
    answer = call(capsys, "compare", *runs, "--plot", tmp_path / "photo.png")
    assert (answer.status, "photo.png is there and was not written by mst compare" in answer.line) == (2, True)
    assert (tmp_path / "photo.png").read_bytes() == b"mine"
    assert [call(capsys, "compare", *runs, "--plot", tmp_path / "bars.pdf").status for _ in range(2)] == [0, 0]
