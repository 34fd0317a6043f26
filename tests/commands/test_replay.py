"""`mst replay`: a step of a run again, bit-equal to what the run recorded, with nothing changed in its folder."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

import mst.cli
from commands.calls import call, image_folder

QUICK = ("--monitor.tensorboard", "false", "--runtime.precision", "fp32", "--runtime.workers", "0")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return image_folder(tmp_path_factory.mktemp("images") / "set", 17)


def trained(images: Path, out: Path, *words: str) -> Path:
    """A run of 8 steps of 4 images with checkpoints at 4 and 8."""
    sizes = ("--train.batch-size", "4", "--train.epochs", "2", "--checkpoint.every-steps", "4")
    every = ("--monitor.every-steps", "2", *sizes)
    assert (
        mst.cli.main(["pretrain", "debug", "--data.train", str(images), "--out", str(out), *every, *QUICK, *words]) == 0
    )
    return out


@pytest.fixture(scope="module")
def run(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(images, tmp_path_factory.mktemp("runs") / "run")


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(("step", "begun"), [(1, 0), (4, 0), (6, 4)])
def test_a_step_is_the_one_that_was_recorded(
    run: Path, capsys: pytest.CaptureFixture[str], step: int, begun: int
) -> None:
    before = contents(run)
    answer = call(capsys, "replay", run, step, "--json")
    assert answer.status == 0, answer.err
    found = json.loads(answer.out)
    assert (found["step"], found["from_step"], found["first"]) == (step, begun, None)
    assert found["recorded"] == {"file": "metrics.jsonl", "equal": True, "differences": {}}
    assert contents(run) == before


def test_a_step_without_a_row_says_so(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    answer = call(capsys, "replay", run, 7)
    assert answer.status == 0, answer.err
    assert "all tensors are finite" in answer.out
    assert "no row of this step" in answer.out


def test_another_row_is_told(images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = trained(images, tmp_path / "run")
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    text = "".join(json.dumps({**row, "loss": 1.5}) + "\n" for row in rows)
    (run / "metrics.jsonl").write_text(text)
    answer = call(capsys, "replay", run, 6)
    assert "differs from the row in metrics.jsonl: loss 1.5 -> " in answer.out


def test_a_huge_rate_is_found(images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = trained(images, tmp_path / "run", "--optimizer.lr", "1e8", "--schedule.warmup-epochs", "0")
    bad = json.loads((run / "bad_steps.jsonl").read_text().splitlines()[0])
    answer = call(capsys, "replay", run, bad["step"], "--json")
    assert answer.status == 0, answer.err
    found = json.loads(answer.out)
    assert found["skipped"]
    assert found["indices"] == bad["indices"]
    assert found["recorded"]["equal"], found["recorded"]
    assert found["first"]["name"].startswith("output of ")
    assert found["weights_blew_up"]["step"] < bad["step"]
    said = call(capsys, "replay", run, bad["step"]).out
    assert "weights blew up" in said
    assert "more likely the weights" in said
    assert str(images) in said


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "name a run and a step"),
        (("RUN",), "name a run and a step"),
        (("RUN", "9"), "step 9 is outside the run"),
        (("RUN", "x"), "STEP"),
        (("NONE", "1"), "holds no run"),
    ],
)
def test_refusals(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], said: str
) -> None:
    places = {"RUN": str(run), "NONE": str(tmp_path)}
    answer = call(capsys, "replay", *(places.get(word, word) for word in words))
    assert answer.status == 2
    assert said in answer.line


def test_other_images_and_other_trainings_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = image_folder(tmp_path / "set", 17)
    run = trained(images, tmp_path / "run")
    capsys.readouterr()
    next(path for path in images.rglob("*") if path.is_file()).unlink()
    answer = call(capsys, "replay", run, 6)
    assert answer.status == 2
    assert f"mst replay {run} 6 --accept-changed-data" in answer.line
    assert call(capsys, "replay", run, 6, "--accept-changed-data").status == 0
    for task, said in (("finetune", "holds no run of mst finetune"), ("other", "training of another kind, other")):
        (run / "config.json").write_text(json.dumps({"task": task}))
        answer = call(capsys, "replay", run, 6)
        assert answer.status == 2
        assert said in answer.line


def test_settings_changed_later_are_taken_back(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = trained(images, tmp_path / "run")
    assert call(capsys, "pretrain", "--resume", run, "--optimizer.lr", "1e-3").status == 0
    assert json.loads((run / "plan.json").read_text())["interventions"]
    found = json.loads(call(capsys, "replay", run, 6, "--json").out)
    assert found["recorded"]["equal"], found["recorded"]


def test_steps_after_a_change_need_its_checkpoint(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = trained(images, tmp_path / "run")
    shutil.rmtree(run / "checkpoints" / "step_8")
    assert call(capsys, "pretrain", "--resume", run, "--optimizer.lr", "1e-3").status == 0
    found = json.loads(call(capsys, "replay", run, 6, "--json").out)
    assert (found["from_step"], found["recorded"]["equal"]) == (4, True)
    shutil.rmtree(run / "checkpoints" / "step_4")
    answer = call(capsys, "replay", run, 6)
    assert answer.status == 2
    assert "the run's settings changed at step 4" in answer.line
    assert "steps up to 4 can" in answer.line
    found = json.loads(call(capsys, "replay", run, 4, "--json").out)
    assert (found["from_step"], found["recorded"]["equal"]) == (0, True)
