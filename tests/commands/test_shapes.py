"""Other channels and other shapes than square RGB, from files to an exported network: nothing assumes them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import timm
import torch

import mst
from commands.calls import call, image_folder, labelled_folder

QUICK = (
    "--monitor.tensorboard",
    "false",
    "--runtime.precision",
    "fp32",
    "--runtime.workers",
    "0",
    "--train.epochs",
    "2",
)
SHAPES = ("--views.global-size", "32", "64", "--views.local-size", "16", "32")


def six_channels(folder: Path, count: int, seed: int = 0) -> Path:
    """Write smooth six-channel arrays, one of them a file too many to be a whole batch."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        y, x = np.mgrid[0:40, 0:72]
        waves = [np.sin(x / (3 + band) + seed + number) + np.cos(y / (2 + band)) for band in range(6)]
        np.save(folder / f"image_{number}.npy", (np.stack(waves, axis=-1) * 20 + 40 * np.arange(1, 7) / 2).astype("u1"))
    return folder


@pytest.mark.parametrize(
    "model",
    [
        (),
        ("--model.backbone", "vit_small_patch16_dinov3"),
        (
            "--model.backbone",
            "swin_tiny_patch4_window7_224",
            "--model.patch-size",
            "16",
            "--model.embed-dim",
            "8",
            "--model.num-heads",
            "1",
        ),
    ],
    ids=["vit", "rotary", "swin"],
)
def test_six_channels_and_oblong_crops(
    model: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images, run = six_channels(tmp_path / "set", 9), tmp_path / "run"
    for part, number in (("train", 4), ("val", 2)):
        for seed, name in enumerate(("a", "b")):
            six_channels(tmp_path / "labelled" / part / name, number, seed)
    words = ("--data.train", images, "--data.channels", "6", *SHAPES, *model, *QUICK)
    answer = call(capsys, "pretrain", "debug", *words, "--monitor.knn-data", tmp_path / "labelled", "--out", run)
    assert answer.status == 0, answer.err
    assert list((run / "previews").glob("*.png"))

    plan = json.loads((run / "plan.json").read_text())
    measured = np.mean([np.load(path).reshape(-1, 6).mean(0) for path in images.iterdir()], axis=0) / 255
    assert plan["mean"] == pytest.approx(measured, abs=1e-3)
    assert plan["reasons"]["mean"] == "measured on 9 of the images"
    backbone = mst.load_backbone(run)
    assert backbone.metadata["mean"] == plan["mean"]
    assert (backbone.spec.image_size, backbone.spec.channels) == ((32, 64), 6)

    evaluated = call(capsys, "evaluate", "knn", "--backbone", run, "--data", tmp_path / "labelled", "--json")
    assert evaluated.status == 0, evaluated.err
    assert call(capsys, "embed", "--backbone", run, "--data", images, "--out", tmp_path / "e.npz").status == 0
    assert call(capsys, "export", "--backbone", run, "--out", tmp_path / "timm", "--json").status == 0
    loaded = timm.create_model(f"local-dir:{tmp_path / 'timm'}", pretrained=True).eval()
    pixels = torch.randn(2, 6, 32, 64)
    torch.testing.assert_close(loaded(pixels), backbone(pixels), atol=1e-5, rtol=1e-4)


def test_statistics_on_request(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images, run = image_folder(tmp_path / "set", 9), tmp_path / "run"
    words = ("--data.train", images, "--views.mean", "auto", "--views.std", "auto", *SHAPES, *QUICK)
    answer = call(capsys, "pretrain", "debug", *words, "--out", run)
    assert answer.status == 0, answer.err
    assert mst.load_config(run / "config.json").views.mean == "auto"
    metadata = mst.load_backbone(run).metadata
    assert len(metadata["mean"]) == len(metadata["std"]) == 3
    assert metadata["mean"] != [0.485, 0.456, 0.406]
    assert call(capsys, "evaluate", "knn", "--backbone", run, "--data", labelled_folder(tmp_path / "l")).status == 0
    assert "step 2 of 2" in call(capsys, "pretrain", "--resume", run).err


def test_channels_that_do_not_match(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = six_channels(tmp_path / "set", 9)
    answer = call(capsys, "pretrain", "debug", "--data.train", images, "--data.channels", "5", "--out", tmp_path / "r")
    assert answer.status == 2
    assert "5 channels first or last are asked for by --data.channels" in answer.line
    answer = call(capsys, "pretrain", "debug", "--data.train", images, "--out", tmp_path / "r")
    assert "holds no images" in answer.line
    labelled = labelled_folder(tmp_path / "labelled", ("cat",))
    words = ("--data.train", images, "--data.channels", "6", "--out", tmp_path / "r")
    for command, option in ((("pretrain", "debug"), "--monitor.knn-data"), (("ablate", "head"), "--eval")):
        recipe = ("--recipe", "debug") if command[0] == "ablate" else ()
        answer = call(capsys, *command, *recipe, *words, option, labelled)
        assert answer.status == 2
        assert f"{option}: none of the images tried can be decoded" in answer.err
        assert "has 3 channels, 6 are asked for by --data.channels" in answer.err
    assert not (tmp_path / "r").exists()
