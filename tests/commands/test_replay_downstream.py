"""`mst replay` of trainings with labels: equal to what was recorded, what went wrong is named, changes are refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from torch import Tensor

from commands.calls import Answer, call, labelled_folder
from commands.test_evaluate_detection import WORDS as DETECTOR
from commands.test_segmentation import QUIET, SMALL
from evaluate.coco_folders import write_coco
from evaluate.segmenters import striped_folder, vit
from mst.model.backbone_file import save_backbone
from mst.views.normalise import normalise
from mst.workflows.finetuning import batches

FAST = ["--batch-size", "4", "--checkpoint-every", "2", "--drop-path", "0", "--workers", "0"]
TUNED = ["--no-progress", "--precision", "fp32", "--device", "cpu", *FAST]


def backbone_in(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    save_backbone(folder / "backbone.safetensors", vit().eval(), {"mean": [0.5] * 3, "std": [0.25] * 3})
    return folder / "backbone.safetensors"


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def last(answer: Answer) -> str:
    """Return the line that ends a refused call; remarks on the data may stand before it."""
    line = answer.err.splitlines()[-1]
    assert line.startswith("mst: error: ")
    return line


def replayed(capsys: pytest.CaptureFixture[str], run: Path, step: int) -> dict[str, object]:
    """Replay a step, which changes nothing in the folder."""
    before = contents(run)
    answer = call(capsys, "replay", run, step, "--json")
    assert answer.status == 0, answer.err
    assert contents(run) == before
    found: dict[str, object] = json.loads(answer.out)
    return found


def tuned(capsys: pytest.CaptureFixture[str], root: Path, *words: object) -> Path:
    """A fine-tuning of 6 steps with checkpoints at 2, 4 and 6, of which two are kept."""
    data = labelled_folder(root / "data", val=("cat", "dog"))
    out, weights = root / "run", backbone_in(root / "weights")
    base = ["finetune", "--backbone", weights, "--data", data, "--out", out, "--epochs", "3", *TUNED]
    answer = call(capsys, *base, *words)
    assert answer.status == 0 or "are not finite numbers" in last(answer), answer.err  # the scores, after all steps
    return out


def test_a_step_of_a_fine_tuning(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tuned(capsys, tmp_path, "--base-lr", "0.02", "--accumulate", "2")
    for step, begun in ((1, 0), (6, 4)):
        found = replayed(capsys, run, step)
        assert (found["from_step"], found["first"]) == (begun, None)
        assert found["recorded"] == {"file": "metrics.jsonl", "equal": True, "differences": {}}
    answer = call(capsys, "replay", run, 7)
    assert (answer.status, "step 7 is outside this training: give 1 to 6" in last(answer)) == (2, True)


def test_a_step_of_several_processes_is_said_to_differ(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tuned(capsys, tmp_path, "--base-lr", "0.02")
    noted = json.loads((run / "training.json").read_text())
    assert noted["processes"] == 1
    (run / "training.json").write_text(json.dumps({**noted, "processes": 2}))
    answer = call(capsys, "replay", run, 1)
    assert answer.status == 0
    assert "2 processes shared the batches" in answer.err


def test_a_huge_rate_of_a_fine_tuning(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tuned(capsys, tmp_path, "--base-lr", "1e20", "--warmup-epochs", "0")
    bad = json.loads((run / "bad_steps.jsonl").read_text().splitlines()[0])
    found = replayed(capsys, run, bad["step"])
    assert found["skipped"]
    assert found["indices"] == bad["indices"]
    assert found["recorded"] == {"file": "bad_steps.jsonl", "equal": True, "differences": {}}
    assert found["first"]["name"].startswith("output of backbone")  # type: ignore[index]
    said = call(capsys, "replay", run, bad["step"]).out
    assert "weights blew up" in said
    assert str(tmp_path / "data" / "train") in said


@pytest.mark.parametrize(("accumulate", "positions"), [(1, [3]), (2, [1, 3])])
def test_bad_images_of_a_fine_tuning_are_named(
    accumulate: int,
    positions: list[int],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = tuned(capsys, tmp_path, "--randaugment", "none", "--accumulate", accumulate)

    def infinite(pixels: Tensor, mean: object, std: object) -> Tensor:
        seen = normalise(pixels, mean, std)  # type: ignore[arg-type]
        seen[-1, 0, 3, 4] = torch.inf
        return seen

    monkeypatch.setattr(batches, "normalise", infinite)
    monkeypatch.setattr(batches, "mixed", lambda images, labels, classes, **_: (images, labels))
    monkeypatch.setattr(batches, "erased", lambda images, *_: images)
    found = replayed(capsys, run, 5)
    assert found["first"]["name"] == "pixels given to backbone"  # type: ignore[index]
    assert found["first"]["bad"] == 1  # type: ignore[index]
    assert [image["position"] for image in found["images"]] == positions  # type: ignore[attr-defined]
    assert Path(found["images"][0]["path"]).is_file()  # type: ignore[index]


def test_what_changed_since_a_fine_tuning_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tuned(capsys, tmp_path)
    config = json.loads((run / "config.json").read_text())
    for step in (1, 6):  # from the start, which `training.json` describes, and from a checkpoint
        config["settings"]["seed"] = 5
        (run / "config.json").write_text(json.dumps(config))
        answer = call(capsys, "replay", run, step, "--accept-changed-data")
        assert (answer.status, "another step: seed changed since the training" in last(answer)) == (2, True)
        config["settings"]["seed"] = 0
        (run / "config.json").write_text(json.dumps(config))
    image = next((tmp_path / "data" / "train").rglob("*.jpg"))
    shutil.copy(image, image.with_name("another.jpg"))
    image.unlink()
    answer = call(capsys, "replay", run, 6)
    assert answer.status == 2
    assert "contents of the data changed since the training" in last(answer)
    assert f"mst replay {run} 6 --accept-changed-data" in last(answer)
    assert call(capsys, "replay", run, 6, "--accept-changed-data").status == 0
    (tmp_path / "weights" / "backbone.safetensors").unlink()
    assert call(capsys, "replay", run, 6, "--accept-changed-data").status == 0  # the checkpoint has all weights
    answer = call(capsys, "replay", run, 1, "--accept-changed-data")
    assert (answer.status, "backbone.safetensors does not exist" in answer.line) == (2, True)


def test_a_step_of_a_segmentation(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone, data = backbone_in(tmp_path), striped_folder(tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    words = ["evaluate", "segmentation", "--backbone", backbone.name, "--data", data.name, *SMALL, *QUIET]
    words += ["--head", "setr-pup", "--train-backbone", "--out", "out", "--checkpoints", "c", "--checkpoint-every", "2"]
    answer = call(capsys, *words, "--lr", "1e15", "--clip-norm", "none")
    assert (answer.status, "are not finite numbers" in last(answer)) == (1, True)  # the scores, after all steps
    monkeypatch.chdir("/")
    out = tmp_path / "out"
    bad = json.loads((out / "bad_steps.jsonl").read_text().splitlines()[0])
    found = replayed(capsys, out, bad["step"])
    assert found["recorded"] == {"file": "bad_steps.jsonl", "equal": True, "differences": {}}
    assert [image["path"] for image in found["images"]] == [  # type: ignore[attr-defined]
        str(data / "images" / f"{index}.png") for index in bad["indices"]
    ]
    assert replayed(capsys, out, 1)["recorded"]["equal"]  # type: ignore[index]
    noted = json.loads((out / "training.json").read_text())
    noted["asked"]["protocol"]["lr"] = 1e-3
    (out / "training.json").write_text(json.dumps(noted))
    answer = call(capsys, "replay", out, 1)
    assert (answer.status, "lr changed since the training" in last(answer)) == (2, True)
    (out / "training.json").write_text("[]")
    assert "no record of a training" in call(capsys, "replay", out, 1).line
    monkeypatch.chdir(tmp_path)
    shutil.rmtree(tmp_path / "c")  # repeated, it writes the same names: what is not its own stays
    answer = call(capsys, *words)
    assert (answer.status, "training.json is there and was changed since" in last(answer)) == (2, True)


def test_a_step_of_a_detector(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_coco(tmp_path / "coco")
    data, out = write_coco(tmp_path / "coco", split="val"), tmp_path / "c"
    words = ["evaluate", "detection", "--backbone", backbone_in(tmp_path), "--data", data, *DETECTOR]
    words += ["--checkpoints", out, "--epochs", "3", "--lr", "1e20", "--warmup-steps", "0"]
    assert call(capsys, *words).status == 0
    bad = json.loads((out / "bad_steps.jsonl").read_text().splitlines()[0])
    found = replayed(capsys, out, bad["step"])
    assert found["recorded"] == {"file": "bad_steps.jsonl", "equal": True, "differences": {}}
    assert found["weights_blew_up"]["step"] == 1  # type: ignore[index]
    assert replayed(capsys, out, 1)["recorded"]["equal"]  # type: ignore[index]
