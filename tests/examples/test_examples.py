"""The examples run as they are."""

from __future__ import annotations

import math
import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mst

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def load(name: str) -> dict[str, Any]:
    """The names that an example defines."""
    return runpy.run_path(str(EXAMPLES / f"{name}.py"))


def test_every_example_is_tested() -> None:
    tested = {"pretrain_folder", "extract_features", "custom_loop", "multichannel_scenes", "notebook"}
    assert {path.stem for path in EXAMPLES.glob("*.py")} == tested


def test_custom_loop() -> None:
    losses = load("custom_loop")["main"]()
    assert all(math.isfinite(loss) for loss in losses)


def test_pretrain_folder_and_then_extract_features(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    load("pretrain_folder")["main"](tmp_path / "first")
    load("extract_features")["main"](tmp_path / "first" / "run", tmp_path / "second")
    text = capsys.readouterr().out
    assert "k-NN top-1" in text
    assert "on a grid of (4, 4)" in text


def test_notebook(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tracker = load("notebook")["main"](tmp_path)
    assert tracker.backbone.is_file()
    assert tracker.settings["train"]["epochs"] == 2
    printed = capsys.readouterr().out
    for part in ("taken whole", "features (3, ", "split split-", "64 rows of features"):
        assert part in printed


def test_extract_features_without_a_run(tmp_path: Path) -> None:
    load("extract_features")["main"](None, tmp_path)
    assert (tmp_path / "features.npz").is_file()


def test_multichannel_scenes(tmp_path: Path) -> None:
    example = load("multichannel_scenes")
    for place in ("a", "b"):
        example["main"](
            ["--out", str(tmp_path / place), "--channels", "6", "--train", "20", "--val", "10", "--size", "32"]
        )
    files = sorted((tmp_path / "a").rglob("*.npy"))
    assert [len(list((tmp_path / "a" / part).rglob("*.npy"))) for part in ("train", "val")] == [20, 10]
    images = np.stack([np.load(path) for path in files])
    assert images.shape == (30, 32, 32, 6)
    assert images.dtype == np.uint8
    twins = np.stack([np.load(tmp_path / "b" / path.relative_to(tmp_path / "a")) for path in files])
    np.testing.assert_array_equal(images, twins)
    assert len(np.unique(images.reshape(30, -1), axis=0)) == 30
    np.testing.assert_array_equal(example["image"](0, 7, 32, 9)[..., :4], example["image"](0, 7, 32, 6)[..., :4])

    # A band of infra-red is no mixture of the colours: a linear fit leaves most of it unexplained.
    colours = np.column_stack([images[..., :3].reshape(-1, 3), np.ones(images[..., 0].size)]).astype(float)
    for band in (3, 4, 5):
        values = images[..., band].reshape(-1).astype(float)
        left = values - colours @ np.linalg.lstsq(colours, values, rcond=None)[0]
        assert left.var() > 0.5 * values.var()


def test_multichannel_scenes_are_images_to_train_on(tmp_path: Path) -> None:
    load("multichannel_scenes")["main"](["--out", str(tmp_path), "--train", "16", "--val", "10", "--size", "32"])
    settings = {
        "data.train": str(tmp_path / "train"), "data.channels": 6, "train.epochs": 1, "monitor.knn_data": str(tmp_path),
    }  # fmt: skip
    run = mst.pretrain(mst.load_recipe("debug", settings), tmp_path / "run")
    assert "knn_top1" in run.metrics
