"""`own-images` and `--minutes` as a user types them: chosen once, kept on resume; one line for mistakes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import mst
from commands.calls import call, image_folder
from mst.config.load import load_config
from mst.errors import ConfigError
from mst.planning import resolving

QUICK = (
    "--monitor.tensorboard",
    "false",
    "--runtime.workers",
    "0",
    "--views.local-crops",
    "1",
    "--model.prototypes",
    "64",
)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return image_folder(tmp_path_factory.mktemp("images") / "set", 12, size=32)


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resolving, "PROBE_SECONDS", 0.01)
    monkeypatch.setattr(resolving, "SPEED_SECONDS", 0.01)


def test_a_run_chooses_once_and_goes_on_as_it_chose(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    words = ("pretrain", "own-images", "--data.train", images, "--out", out, "--minutes", 0.1, *QUICK)
    monkeypatch.setattr("mst.config.choosing.MOST_EPOCHS", 2.0)
    done = call(capsys, *words)
    assert done.status == 0, done.err
    config = load_config(out / "config.json")
    assert config.choice
    assert config.choice.minutes == 0.1
    assert config.choice.facts["images"]["count"] == 12
    assert config.choice.facts["speed"]["images_per_second"] > 0
    assert (config.views.local_crops, config.model.prototypes, config.train.epochs) == (1, 64, 2.0)
    assert {"views.local_crops", "model.prototypes"} <= set(config.choice.given)
    assert "--views.global-size" in done.err + done.out
    before = (out / "backbone.safetensors").read_bytes()
    monkeypatch.setattr(resolving, "measure_speed", None)  # nothing is measured again
    for again in (
        ("pretrain", "--resume", out),
        (*words, "--continue"),
        ("pretrain", "--resume", out, "--minutes", 0.1),
    ):
        assert call(capsys, *again).status == 0
        assert load_config(out / "config.json") == config
    assert (out / "backbone.safetensors").read_bytes() == before
    refused = call(capsys, "pretrain", "--resume", out, "--minutes", 3)
    assert (refused.status, refused.err.count("\n")) == (2, 1)
    assert "cannot change --minutes 3: the run was started with --minutes 0.1" in refused.err


def test_plan_takes_the_same_words(images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    answer = call(
        capsys, "plan", "own-images", "--data.train", images, "--minutes", 0.2, "--no-probe", "--json", *QUICK
    )
    found = json.loads(answer.out)["choice"]
    assert found["minutes"] == 0.2
    assert set(found["settings"]) == set(found["reasons"])
    assert "train.epochs" in found["settings"]


def test_minutes_of_another_recipe_choose_its_epochs(images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("plan", "debug", "--data.train", images, "--minutes", 1, "--no-probe", "--json")
    answer = call(capsys, *words)
    assert answer.status == 0, answer.err
    assert list(json.loads(answer.out)["choice"]["settings"]) == ["train.epochs"]


MISTAKES = [
    (("--minutes", "0"), "--minutes 0: must be a number above 0"),
    (("--minutes", "-3"), "--minutes -3: must be a number above 0"),
    (("--minutes", "nan"), "--minutes"),
    (("--minutes", "soon"), "--minutes soon: must be a number"),
    (("--minutes",), "--minutes needs a value: a number"),
    (("--minutes", "0.0000001"), "is too short for one pass over 12 images to learn from at"),
]


@pytest.mark.parametrize("command", ["pretrain", "plan"])
@pytest.mark.parametrize(("words", "said"), MISTAKES, ids=[" ".join(words) for words, _ in MISTAKES])
def test_mistakes_are_one_line(
    command: str, words: tuple[str, ...], said: str, images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = images.parent / "refused"
    out = ("--out", run) if command == "pretrain" else ()
    answer = call(capsys, command, "own-images", "--data.train", images, *out, *words)
    assert (answer.status, answer.err.count("\n")) == (2, 1)
    assert said in answer.err
    assert not run.exists()


def test_a_length_given_twice_is_refused(images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    answer = call(capsys, "plan", "debug", "--data.train", images, "--minutes", 1, "--train.epochs", 2)
    assert (answer.status, answer.err.count("\n")) == (2, 1)
    assert "--minutes 1 and --train.epochs 2: give one of them" in answer.err


def test_from_python(images: Path) -> None:
    config = mst.load_recipe("own-images", {"data.train": str(images)}, minutes=0.1)
    chosen = resolving.resolved(config)
    assert resolving.resolved(chosen) is chosen
    with pytest.raises(ConfigError, match="minutes -1"):
        mst.load_recipe("own-images", minutes=-1)


def test_one_broken_image_of_many_does_not_end_the_choice(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The few images that the speed in memory is measured on are no measure of how many are broken."""
    folder = image_folder(tmp_path / "set", 60, size=32)
    first = min(path for path in folder.rglob("*") if path.is_file())
    first.write_bytes(first.read_bytes()[:20])
    asked: list[float] = []
    measure = resolving.measure_kept_speed

    def noted(*args: Any, **kwargs: Any) -> float:
        asked.append(measure(*args, **kwargs))
        return asked[-1]

    monkeypatch.setattr(resolving, "measure_kept_speed", noted)
    answer = call(capsys, "plan", "own-images", "--data.train", folder, "--minutes", 1, "--no-probe", "--json", *QUICK)
    assert answer.status == 0, answer.err
    assert asked
    assert asked[0] > 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--monitor.knn-labels", "t.csv"), "knn-labels t.csv: name the folder that its paths are relative to with"),
        (("--monitor.knn-label-column", "y"), "knn-label-column y: name the table, or the folder of its images, with"),
        (("--monitor.guard", "stop"), "--monitor.guard stop needs labelled images to score"),
    ],
)
def test_settings_that_would_do_nothing(
    words: tuple[str, ...], said: str, images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert said in call(capsys, "plan", "own-images", "--data.train", images, *words).line


def test_options_that_other_commands_have_are_known(capsys: pytest.CaptureFixture[str]) -> None:
    line = call(capsys, "evaluate", "linear", "--model", "runs/x", "--data", "y").line
    assert "unknown option --model; did you mean --backbone?" in line
    line = call(capsys, "predict", "classification", "--backbone", "runs/x", "--data", "y").line
    assert "unknown option --backbone; did you mean --model?" in line
