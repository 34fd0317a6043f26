"""`mst quickstart` from end to end, tiny: the data, the run, the results of both networks, the page."""

from __future__ import annotations

import html
import json
from pathlib import Path

import pytest

from mst.cli import main
from mst.commands import quickstart as command
from mst.config.load import override
from mst.recipes import RECIPES
from mst.runtime.storage.results import read_jsonl
from mst.runtime.storage.rundir import RunDir
from mst.workflows.quickstart import found_objects

TINY = override(
    RECIPES["quickstart"].config,
    {
        "views.global_size": 32,
        "views.local_size": 16,
        "views.local_crops": 1,
        "model.embed_dim": 32,
        "model.depth": 1,
        "model.num_heads": 2,
        "model.prototypes": 16,
        "model.head_hidden": 16,
        "model.head_bottleneck": 8,
        "train.batch_size": 8,
        "train.epochs": 1,
        "monitor.every_steps": 1,
    },
)
SCENES = {"train": 40, "val": 20}


def test_everything_is_there_at_the_end(tmp_path: Path) -> None:
    done = command.quickstart(tmp_path / "run", config=TINY, scenes=SCENES)
    run = RunDir(tmp_path / "run")
    assert done.report == run.report
    page = run.report.read_text(encoding="utf-8")
    assert all(task in page for task in ("k-NN classification", "Linear probe", "Segmentation from patch tokens"))
    assert run.backbone.exists()
    assert len(list((run.root / "data" / "train").rglob("*.png"))) == 40
    judged, rows = read_jsonl(run.results)[:5], read_jsonl(run.results)[5:]
    assert [row["task"] for row in judged] == ["baseline"] * 4 + ["verdict"]
    assert judged[-1]["extra"]["sentence"] in html.unescape(page)
    tasks = ["knn", "linear", "patch_segmentation", "objectness", "patch_objectness"]
    assert [row["task"] for row in rows] == [*tasks, "knn", "linear", "baseline", *tasks[2:]]
    assert [row["backbone"].startswith("random:") for row in rows] == [True] * 5 + [False, False, True] + [False] * 3
    trained = [row for row in rows if not row["backbone"].startswith("random:")]
    verdicts = {row["task"]: row["extra"]["verdict"] for row in trained if "verdict" in row["extra"]}
    assert {**done.verdicts, **{task: verdict["sentence"] for task, verdict in verdicts.items()}} == done.verdicts
    assert set(done.verdicts) == set(command.TITLES)
    assert "colours alone" in done.verdicts["patch_objectness"]
    assert "colours alone" not in done.verdicts["objectness"]
    assert "the middle of the image" in done.verdicts["pointing"]
    assert sorted(path.name for path in (run.root / "pictures").iterdir()) == sorted(
        [*tasks[2:], *(f"{task}-untrained" for task in tasks[2:])]
    )
    compared = {task: [each["which"] for each in verdict["differences"]] for task, verdict in verdicts.items()}
    simple = ["untrained", "colour", "pixels", "majority"]
    assert compared == {"knn": simple, "linear": simple, "patch_segmentation": ["untrained", "colour"]}
    assert {row["extra"]["val_images"] for row in rows} == {20}
    assert set(done.before) == set(done.after) == set(command.TITLES)


def test_what_is_said_of_objects() -> None:
    fresh = {"jaccard": 20.0, "jaccard_se": 1.0}
    trained = {"jaccard": 30.0, "jaccard_se": 1.0, "jaccard_centre": 28.0, "jaccard_centre_se": 1.0}
    said = found_objects("objects", "jaccard", fresh, trained)
    assert said == (
        "objects: 30.0 ± 1.0, untrained 20.0, a box in the middle 28.0: not clearly above a box in the middle"
    )
    colours = {"jaccard_colour": 31.0, "jaccard_colour_se": 1.0}
    assert found_objects("objects", "jaccard", fresh, trained | colours).endswith(
        "a box in the middle 28.0, colours alone 31.0: not clearly above a box in the middle and colours alone"
    )
    assert found_objects("objects", "jaccard", fresh, trained | {"jaccard": 40.0}).endswith("28.0: clearly above each")
    assert found_objects("objects", "jaccard", {**fresh, "jaccard": 50.0}, trained | {"jaccard": 40.0}).endswith(
        "above untrained"
    )


def test_the_untrained_network_is_the_one_that_training_started_from(tmp_path: Path) -> None:
    command.quickstart(tmp_path / "run", config=TINY, scenes=SCENES)
    run = RunDir(tmp_path / "run")
    first = next(row for row in read_jsonl(run.metrics) if row["step"] == 0)
    untrained = next(row for row in read_jsonl(run.results) if row["task"] == "knn")
    assert untrained["metrics"][f"top1_k{first['knn_k']}"] == pytest.approx(first["knn_top1"])


def test_the_command_ends_with_what_to_do_next(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    numbers = dict.fromkeys(command.TITLES, 1.0)
    done = command.Quickstart(tmp_path, tmp_path / "report.html", numbers, numbers, {"linear": "It is so."}, 61.0)
    monkeypatch.setattr(command, "quickstart", lambda out, *, overwrite: done)
    assert main(["quickstart", "--out", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "report.html" in said
    assert "does it help? It is so." in said
    assert main(["quickstart", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["after"] == dict(done.after)


def test_bad_use_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    for words, expected in (
        (["--out", str(tmp_path)], "is not empty"),
        (["--train.epochs", "3"], "unknown option"),
        (["--overwrit"], "unknown option"),
    ):
        assert main(["quickstart", *words]) == 2
        error = capsys.readouterr().err
        assert expected in error
        assert error.count("\n") == 1


def test_the_recipe_fits_the_promise() -> None:
    recipe = RECIPES["quickstart"]
    assert recipe.config.objective.strategy == "attention_low"
    assert recipe.config.objective.restoration_weight > 0
