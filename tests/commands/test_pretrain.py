"""`mst pretrain` from folder to run folder, resume, and every refused input: one line, status 2, nothing written."""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import mst
from commands.calls import call, image_folder, labelled_folder
from mst.checkpoint import store
from mst.runtime.storage.results import read_jsonl
from runtime.holder import held_by_another

QUICK = ("--monitor.tensorboard", "false", "--runtime.precision", "fp32", "--runtime.workers", "0")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return image_folder(tmp_path_factory.mktemp("images") / "set", 17)


@pytest.fixture(scope="module")
def finished(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 4 steps with a checkpoint at each."""
    out = tmp_path_factory.mktemp("runs") / "finished"
    words = ("pretrain", "debug", "--data.train", str(images), "--out", str(out), "--checkpoint.every-steps", "1")
    assert mst.cli.main([*words, "--checkpoint.keep", "4", *QUICK]) == 0
    return out


def test_a_run_leaves_what_it_promises(finished: Path) -> None:
    for name in ("config.json", "plan.json", "environment.json", "metrics.jsonl", "backbone.safetensors"):
        assert (finished / name).is_file(), name
    assert not (finished / "unreadable.txt").exists()
    assert list((finished / "previews").glob("*.png"))
    plan = json.loads((finished / "plan.json").read_text())
    assert plan["total_steps"] == 4
    assert "lr" in plan["reasons"]
    environment = json.loads((finished / "environment.json").read_text())
    assert environment["torch"] == torch.__version__
    assert environment["precision"] == "float32: asked for"
    backbone = mst.load_backbone(finished)
    assert backbone(torch.zeros(1, 3, 32, 32)).shape == (1, backbone.embed_dim)


def test_settings_come_back(finished: Path, images: Path) -> None:
    config = mst.load_config(finished / "config.json")
    assert config.recipe == "debug"
    assert config.data.train == (str(images),)
    assert config.checkpoint.every_steps == 1


def test_the_python_api_and_a_file_of_settings(images: Path, tmp_path: Path) -> None:
    settings = tmp_path / "mine.json"
    debug = mst.load_recipe("debug").model_dump(mode="json")
    settings.write_text(json.dumps(debug | {"recipe": "mine"}))
    config = mst.load_recipe(
        str(settings), {"data.train": str(images), "train.epochs": 0.5, "runtime.precision": "fp32"}
    )
    run = mst.pretrain(config, tmp_path / "run")
    assert run.steps == 1
    assert run.backbone.is_file()
    assert run.metrics["loss"] > 0


def test_knn_while_training_and_unreadable_files(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mixed = tmp_path / "mixed"
    image_folder(mixed, 16)
    (mixed / "broken.jpg").write_bytes(b"no picture")
    labelled = labelled_folder(tmp_path / "labelled")
    run = tmp_path / "run"
    words = ("--data.train", mixed, "--out", run, "--monitor.knn-data", labelled, "--train.epochs", "3")
    answer = call(capsys, "pretrain", "debug", *words, "--data.max-unreadable-share", "0.5", "--json", *QUICK)
    assert answer.status == 0, answer.err
    result = json.loads(answer.out)
    assert result["root"] == str(run)
    assert 0 <= result["metrics"]["knn_top1"] <= 100
    assert [row["step"] for row in read_jsonl(run / "metrics.jsonl") if "knn_top1" in row] == [0, 6]
    assert "broken.jpg" in (run / "unreadable.txt").read_text()
    assert "unreadable.txt lists them" in answer.err


def test_colours_on_the_device_change_nothing(
    finished: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = (
        "pretrain",
        "debug",
        "--data.train",
        images,
        "--out",
        tmp_path / "run",
        "--runtime.colour",
        "device",
        *QUICK,
    )
    assert call(capsys, *words).status == 0
    assert (tmp_path / "run/backbone.safetensors").read_bytes() == (finished / "backbone.safetensors").read_bytes()


def test_grey_images(images: Path, tmp_path: Path) -> None:
    config = mst.load_recipe("debug", {"data.train": str(images), "data.channels": 1, "train.epochs": 1})
    run = mst.pretrain(config, tmp_path / "run")
    assert mst.load_backbone(run.root)(torch.zeros(1, 1, 32, 32)).isfinite().all()


def test_overwrite_replaces_a_run(images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("pretrain", "debug", "--data.train", images, "--out", tmp_path / "run", "--train.epochs", "1", *QUICK)
    assert call(capsys, *words).status == 0
    (tmp_path / "run" / "old").touch()
    refused = call(capsys, *words)
    assert refused.status == 2
    assert "--overwrite" in refused.line
    assert call(capsys, *words, "--overwrite").status == 0
    assert not (tmp_path / "run" / "old").exists()


def test_resume_of_a_finished_run_changes_nothing(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (finished / "backbone.safetensors").read_bytes(), (finished / "metrics.jsonl").read_bytes()
    answer = call(capsys, "pretrain", "--resume", finished)
    assert answer.status == 0, answer.err
    assert "step 4 of 4" in answer.err
    assert ((finished / "backbone.safetensors").read_bytes(), (finished / "metrics.jsonl").read_bytes()) == before


def test_resume_refuses_changed_settings_by_name(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    answer = call(capsys, "pretrain", "--resume", finished, "--train.epochs", "9", "--optimizer.min-lr", "0.1")
    assert answer.status == 2
    assert "--train.epochs (was 2.0, now 9.0)" in answer.line
    assert "--optimizer.min-lr" in answer.line


def test_resume_with_the_whole_command_again(finished: Path, images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("pretrain", "debug", "--data.train", images, "--resume", finished, "--monitor.tensorboard", "false")
    assert call(capsys, *words, "--runtime.precision", "fp32").status == 0
    assert "--runtime.precision" in call(capsys, *words).line  # what changes the run must be said, not left away


def test_continue_starts_and_goes_on_with_one_command(
    finished: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    words = ("pretrain", "debug", "--data.train", images, "--out", run, "--continue", *QUICK)
    for _ in range(2):
        assert call(capsys, *words).status == 0
        assert [row["step"] for row in read_jsonl(run / "metrics.jsonl")][-1] == 4
    assert (run / "backbone.safetensors").read_bytes() == (finished / "backbone.safetensors").read_bytes()
    assert "cannot change --objective.strategy" in call(capsys, *words, "--objective.strategy", "random").line
    for wrong in ("--overwrite", "--resume"):
        extra = (wrong, run) if wrong == "--resume" else (wrong,)
        assert "--continue goes with --out RUN" in call(capsys, *words, *extra).line


def test_resume_takes_another_rate_and_notes_it(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(finished, tmp_path / "run")
    answer = call(capsys, "pretrain", "--resume", tmp_path / "run", "--optimizer.lr", "1e-5")
    assert (answer.status, "on with optimizer.lr None -> 1e-05; plan.json notes it" in answer.err) == (0, True)
    plan = json.loads((tmp_path / "run" / "plan.json").read_text())
    assert plan["lr"] == 1e-5
    assert [row["changed"] for row in plan["interventions"]] == [{"optimizer.lr": [None, 1e-5]}]
    assert call(capsys, "pretrain", "--resume", tmp_path / "run").status == 0


def test_resume_from_another_working_directory_and_with_moved_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    image_folder(tmp_path / "bilder ü", 17)
    monkeypatch.chdir(tmp_path)
    words = ("pretrain", "debug", "--data.train", "bilder ü", "--out", "läufe/eins zwei")
    assert call(capsys, *words, *QUICK).status == 0
    run = tmp_path / "läufe" / "eins zwei"
    assert mst.load_config(run / "config.json").data.train == (str(tmp_path / "bilder ü"),)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert call(capsys, "pretrain", "--resume", run).status == 0

    (tmp_path / "bilder ü").rename(tmp_path / "moved")
    assert "bilder ü does not exist" in call(capsys, "pretrain", "--resume", run).line
    answer = call(capsys, "pretrain", "--resume", run, "--data.train", "../moved")
    assert answer.status == 0, answer.err
    assert f"images now come from {tmp_path / 'moved'}" in answer.err
    assert call(capsys, "pretrain", "--resume", run).status == 0

    image_folder(tmp_path / "moved" / "more", 3)
    answer = call(capsys, "pretrain", "--resume", run)
    assert answer.status == 2
    assert "started with other images (20 images, not 17)" in answer.line


def test_run_folder_and_images_lie_apart(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = image_folder(tmp_path / "run" / "images", 17)
    (tmp_path / "run" / "config.json").write_text('{"recipe": "debug", "objective": {}}')
    words = ("pretrain", "debug", "--data.train", images, "--overwrite", *QUICK)
    assert "holds the images" in call(capsys, *words, "--out", tmp_path / "run").line
    assert "pictures would become training images" in call(capsys, *words, "--out", images / "deep" / "run").line
    assert len(list(images.rglob("*.*"))) == 17


def test_one_process_in_a_run_folder(finished: Path, images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with held_by_another(finished) as other:
        for words in (("--resume", finished), ("debug", "--data.train", images, "--out", finished, "--overwrite")):
            answer = call(capsys, "pretrain", *words)
            assert answer.status == 2
            assert f"is in use by process {other.pid}" in answer.err.splitlines()[-1]
    assert (finished / "backbone.safetensors").exists()


def test_damaged_checkpoints(images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    words = ("--data.train", images, "--out", run, "--checkpoint.every-steps", "1", "--checkpoint.keep", "2")
    assert call(capsys, "pretrain", "debug", *words, *QUICK).status == 0
    whole = (run / "backbone.safetensors").read_bytes()
    student = run / "checkpoints" / "step_4" / "student.pt"
    student.write_bytes(student.read_bytes()[:100])
    answer = call(capsys, "pretrain", "--resume", run)
    assert answer.status == 0, answer.err
    assert "step_4 is damaged" in answer.err
    assert "resuming" in answer.err
    assert (run / "backbone.safetensors").read_bytes() == whole
    for path in run.glob("checkpoints/*/student.pt"):
        path.write_bytes(b"")
    answer = call(capsys, "pretrain", "--resume", run)
    assert answer.status == 2
    assert "damaged" in answer.err.splitlines()[-1]


def test_start_from_another_run(
    finished: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    words = ("debug", "--data.train", images, "--init", finished, "--views.global-size", "32", "40", *QUICK)
    answer = call(capsys, "pretrain", *words, "--out", run, "--schedule.freeze-backbone-epochs", "2")
    assert answer.status == 0, answer.err
    said = " ".join(answer.err.split())
    assert "tensors (pos_embed resampled 4x4 -> 4x5)" in said
    assert "trained already" in json.loads((run / "plan.json").read_text())["reasons"]["lr"]
    before, after = (mst.load_backbone(folder).timm_state_dict() for folder in (finished, run))
    torch.testing.assert_close(before["blocks.1.mlp.fc1.weight"], after["blocks.1.mlp.fc1.weight"])
    (run / "config.json").write_text((run / "config.json").read_text().replace(str(finished), "/gone"))
    refused = call(capsys, "pretrain", "debug", "--data.train", images, "--init", "/gone", "--out", tmp_path / "b")
    assert refused.status == 2
    assert "/gone does not exist" in refused.err.splitlines()[-1]
    assert not (tmp_path / "b").exists()
    assert "holds the weights" in call(capsys, "pretrain", *words, "--out", finished, "--overwrite").line


BAD_FOLDERS: dict[str, Callable[[Path], object]] = {
    "missing": lambda path: None,
    "empty": lambda path: path.mkdir(),
    "no images": lambda path: (path.mkdir(), (path / "notes.txt").write_text("x")),
    "a file": lambda path: path.write_bytes(b"\0\1"),
    "all unreadable": lambda path: (path.mkdir(), [(path / f"{i}.jpg").write_bytes(b"x") for i in range(9)]),
    "too small": lambda path: image_folder(path, 9, size=4),
    "too few": lambda path: image_folder(path, 3),
}
FOLDER_WORDS = {
    "missing": "does not exist",
    "empty": "holds no images",
    "no images": "holds no images",
    "a file": "its first path is no file",
    "all unreadable": "none of the 9 images can be decoded",
    "too small": "smaller than one 8 px patch",
    "too few": "--train.batch-size 8 is larger than the data set of 3 images",
}


@pytest.mark.parametrize("kind", BAD_FOLDERS)
def test_bad_folders(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    BAD_FOLDERS[kind](tmp_path / "set")
    answer = call(capsys, "pretrain", "debug", "--data.train", tmp_path / "set", "--out", tmp_path / "run")
    assert answer.status == 2
    assert FOLDER_WORDS[kind] in answer.line
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("words", "part"),
    [
        ("pretrain", "name a recipe"),
        ("pretrain debg --data.train IMAGES --out RUN", "did you mean debug?"),
        ("pretrain settings.json --data.train IMAGES --out RUN", "settings.json does not exist"),
        ("pretrain debug --out RUN", "--data.train is missing"),
        ("pretrain debug --data.train= --out RUN", "--data.train '' is empty"),
        ("pretrain debug --data.train IMAGES --monitor.knn_data= --out RUN", "--monitor.knn-data '' is empty"),
        ("pretrain debug --data.train IMAGES", "--out is missing"),
        ("pretrain debug --data.train IMAGES --out", "--out needs a value"),
        ("pretrain debug IMAGES --out RUN", "unexpected word"),
        (
            "pretrain debug --data.train IMAGES --out RUN --train.epochs ten",
            "--train.epochs ten: must be a number above 0",
        ),
        ("pretrain debug --data.train IMAGES --out RUN --train.epochs=-1", "--train.epochs -1: must be"),
        ("pretrain debug --data.train IMAGES --out RUN --objective.strategy low", "one of none, attention_low, random"),
        ("pretrain debug --data.train IMAGES --out RUN --objective.strategy randm", "did you mean random?"),
        ("pretrain debug --data.train IMAGES --out RUN --objective.mask_probability 2", "a number from 0 to 1"),
        ("pretrain debug --data.train IMAGES --out RUN --views.global-size 33", "use 32x32 or 40x40"),
        ("pretrain debug --data.train IMAGES --out RUN --views.local-size 16 20", "--views.local-size 16x20"),
        ("pretrain debug --data.train IMAGES --out RUN --model.patch-size 64", "smaller than one 64 px patch"),
        ("pretrain debug --data.train IMAGES --out RUN --model.backbone resnet50", "resnet50"),
        (
            "pretrain debug --data.train IMAGES --out RUN --model.backbone deit_smal_patch16_224",
            "deit_small_patch16_224",
        ),
        ("pretrain debug --data.train IMAGES --out RUN --train.batch-size 99", "use --train.batch-size 17 or less"),
        ("pretrain debug --data.train IMAGES --out RUN --train.accumulate 99", "too small for 99"),
        ("pretrain debug --data.train IMAGES --out RUN --runtime.device gpu", "--runtime.device gpu"),
        ("pretrain debug --data.train IMAGES --out RUN --runtime.device cuda:99", "--runtime.device cuda:99"),
        (
            "pretrain debug --data.train IMAGES --out RUN --data.channels 5",
            "has 3 channels, 5 are asked for by --data.channels",
        ),
        ("pretrain debug --data.train IMAGES --out RUN --monitor.knn-data IMAGES", "are all of class deep"),
        ("pretrain debug --data.train IMAGES --out IMAGES", "is not empty and holds no run"),
        ("pretrain debug --data.train IMAGES --out FILE", "is a file: name a folder"),
        ("pretrain debug --data.train NOWHERE --out FILE/x", "which is a file: name a folder"),
        (f"pretrain debug --data.train NOWHERE --out {'x' * 300}", "File name too long: name another folder"),
        ("pretrain --resume RUN", "holds no run"),
        ("pretrain --resume RUN --overwrite", "holds no run"),
        ("pretrain --resume", "--resume needs a value"),
    ],
)
def test_refused_calls(words: str, part: str, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("x")
    places = {"IMAGES": images, "RUN": tmp_path / "run", "FILE": tmp_path / "file", "FILE/x": tmp_path / "file" / "x"}
    answer = call(capsys, *(places.get(word, word) for word in words.split()))
    assert answer.status == 2
    assert part in answer.err.splitlines()[-1]  # what was passed over, and how images were split, stands before it
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("train", "val", "part"),
    [((), ("cat",), "has no class folders"), (("cat",), ("cat", "emu"), "emu"), (("cat",), (), "has no class folders")],
)
def test_bad_labelled_folders(
    train: tuple[str, ...], val: tuple[str, ...], part: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    labelled = labelled_folder(tmp_path / "labelled", train, val)
    words = (
        "--data.train",
        image_folder(tmp_path / "images"),
        "--out",
        tmp_path / "run",
        "--monitor.knn-data",
        labelled,
    )
    answer = call(capsys, "pretrain", "debug", *words)
    assert answer.status == 2
    assert part in answer.line
    assert not (tmp_path / "run").exists()


def test_too_many_unreadable_files_end_the_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mixed = image_folder(tmp_path / "set", 12)
    for number in range(6):
        (mixed / f"broken{number}.jpg").write_bytes(b"x")
    answer = call(capsys, "pretrain", "debug", "--data.train", mixed, "--out", tmp_path / "run", *QUICK)
    assert answer.status == 2
    assert "unreadable" in answer.err.splitlines()[-1]
    assert "--data.max-unreadable-share" in answer.err.splitlines()[-1]


def test_full_disk_leaves_the_last_checkpoint(
    images: Path, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write, run = store.write_info, tmp_path / "run"

    def full(folder: Path, step: int, *rest: Any, **version: Any) -> None:
        if step == 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(folder, step, *rest, **version)

    words = ("--data.train", images, "--out", run, "--checkpoint.every-steps", "1", *QUICK)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store, "write_info", full)
        answer = call(capsys, "pretrain", "debug", *words)
    assert answer.status == 1
    assert "No space left on device; the checkpoint of step 2 is intact" in answer.err.splitlines()[-1]
    assert call(capsys, "pretrain", "--resume", run).status == 0
    assert (run / "backbone.safetensors").read_bytes() == (finished / "backbone.safetensors").read_bytes()


def test_labelled_images_of_one_class_measure_nothing(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one = labelled_folder(tmp_path / "one", train=("cat",), val=("cat",))
    words = ("pretrain", "debug", "--data.train", images, "--out", tmp_path / "run")
    answer = call(capsys, *words, "--monitor.knn-data", one)
    assert answer.status == 2
    assert "--monitor.knn-data: the training images (4) are all of class cat, so every answer" in answer.err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("kind", ["list", "link", "beyond the limit", "labelled"])
def test_overwrite_spares_images_that_names_elsewhere_lead_to(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, photos = tmp_path / "run", image_folder(tmp_path / "photos", 17)
    kept = image_folder(run / "kept", 4)
    (run / "config.json").write_text('{"recipe": "debug", "objective": {}}')
    words = ["pretrain", "debug", "--overwrite", "--out", run, *QUICK, "--data.train"]
    if kind == "labelled":
        (labelled_folder(tmp_path / "labelled") / "train" / "more").symlink_to(kept)
        words += [photos, "--monitor.knn-data", tmp_path / "labelled"]
    elif kind == "link":
        (photos / "deep" / "more").symlink_to(kept)
        words += [photos]
    else:
        paths = sorted(path for folder in (photos, kept) for path in folder.rglob("*.*"))
        (tmp_path / "list.txt").write_text("".join(f"{path}\n" for path in reversed(paths)))
        words += [tmp_path / "list.txt", *(["--data.limit", "16"] if kind == "beyond the limit" else [])]
    answer = call(capsys, *words)
    assert (answer.status, "which --overwrite would delete: name another folder" in answer.line) == (2, True)
    assert len(list(kept.rglob("*.*"))) == 4


def test_the_value_range_of_twelve_bits_is_measured_kept_and_held_to(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(16):
        values = np.random.default_rng(number).integers(4096, size=(40, 40)).astype(np.uint16)
        Image.fromarray(values).save(folder / f"{number}.png")
    run = tmp_path / "run"
    words = ("pretrain", "debug", "--data.train", str(folder), "--out", str(run), *QUICK)
    assert call(capsys, *words).status == 0
    plan = json.loads((run / "plan.json").read_text())
    assert plan["value_ranges"] == {"uint16": [0, 4095]}
    assert "measured on up to 16" in plan["reasons"]["value_ranges"]
    assert mst.load_backbone(run).metadata["value_ranges"] == {"uint16": [0, 4095]}
    refused = call(capsys, "pretrain", "--resume", run, "--data.value-range", 0, 5000)
    assert refused.status == 2
    assert "cannot change --data.value-range" in refused.line
    plan_words = ("plan", "debug", "--data.train", folder, "--no-probe", "--data.value-range")
    given = call(capsys, *plan_words, -1, 4095, "--json")
    assert json.loads(given.out)["plan"]["value_ranges"] == {"given": [-1, 4095]}
    assert "outside the value range 0 to 99" in call(capsys, *plan_words, 0, 99).line
    for pair in ((5, 5), (9, 1), (0, "inf")):
        refused = call(capsys, *plan_words, *pair)
        assert refused.status == 2
        assert "--data.value-range" in refused.line
