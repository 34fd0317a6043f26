"""Names of any bytes in every command: taken as they are, or refused in one line before the work."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save as saved

from commands.calls import call, image_folder, labelled_folder
from data.pictures import texture
from mst.model.backbone import BackboneSpec
from mst.model.backbone_file import save_backbone
from mst.model.build import build_backbone
from mst.weights.files import read_weights

CPU = ("--device", "cpu", "--precision", "fp32", "--no-progress")


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    spec = BackboneSpec("vit_tiny_patch16_224", (32, 32), 3, 16, embed_dim=32, depth=1, num_heads=2)
    save_backbone(tmp_path / "b.safetensors", build_backbone(spec), {"mean": [0.5] * 3, "std": [0.25] * 3})
    return tmp_path / "b.safetensors"


def pictures(folder: Path, *names: bytes) -> Path:
    folder.mkdir()
    for number, name in enumerate(names):
        texture(number).save(os.fsdecode(os.fsencode(folder) + b"/" + name), "PNG")
    return folder


@pytest.mark.parametrize("suffix", ["npy", "npz"])
def test_names_that_are_no_utf8(suffix: str, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images, out = (
        pictures(tmp_path / "images", b"a.png", b"\xff\xe9.png", b"\xe6\x97\xa5.png"),
        tmp_path / f"f.{suffix}",
    )
    answer = call(capsys, "embed", "--backbone", weights, "--data", images, "--out", out, *CPU)
    assert answer.status == 0, answer.err
    paths = sorted(os.fsencode(images) + b"/" + name for name in os.listdir(os.fsencode(images)))
    if suffix == "npz":
        with np.load(out) as found:
            assert [os.fsencode(str(path)) for path in found["paths"]] == paths
    else:
        assert out.with_suffix(".txt").read_bytes().splitlines() == paths


def test_a_line_break_in_a_name(weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = pictures(tmp_path / "images", b"a.png", b"b\nc.png")
    words = ("embed", "--backbone", weights, "--data", images, *CPU, "--out")
    answer = call(capsys, *words, tmp_path / "f.npy")
    assert answer.status == 2
    assert "b\\nc.png has a line break in its name: name a file that ends in .npz" in answer.line
    assert not (tmp_path / "f.txt").exists()
    assert call(capsys, *words, tmp_path / "f.npz").status == 0
    with np.load(tmp_path / "f.npz") as found:
        assert found["paths"].tolist() == [str(images / "a.png"), str(images / "b\nc.png")]


def test_kept_features_of_names_that_are_no_utf8(
    weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = labelled_folder(tmp_path / "data")
    texture(7).save(os.fsdecode(os.fsencode(data) + b"/train/cat/\xff.png"), "PNG")
    words = ("evaluate", "knn", "--backbone", weights, "--data", data, "--features", tmp_path / "kept", *CPU, "--json")
    first, again = call(capsys, *words), call(capsys, *words)
    assert first.status == 0, first.err
    assert again.err.count("features are read from") == 2
    assert again.out == first.out


def test_a_run_folder_that_is_no_utf8(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images, run = image_folder(tmp_path / os.fsdecode(b"i\xff"), 8), tmp_path / os.fsdecode(b"r\xff [/b]")
    fast = ("--runtime.workers", "0", "--runtime.device", "cpu", "--train.epochs", "1")
    first = call(capsys, "pretrain", "debug", "--data.train", images, "--out", run, *fast)
    assert first.status == 0, first.err
    assert first.err.count("warning: ") == 1
    assert r"TensorBoard writes to no folder like" in first.err
    assert call(capsys, "pretrain", "--resume", run).status == 0
    for words in (
        ("embed", "--backbone", run, "--data", images, "--out", tmp_path / os.fsdecode(b"f\xff.npz"), *CPU),
        ("report", run),
        ("replay", run, "1"),
        ("export", "--backbone", run, "--out", tmp_path / "e#x?y%20"),
    ):
        answer = call(capsys, *words)
        assert answer.status == 0, answer.err
    answer = call(capsys, "export", "--backbone", run, "--out", tmp_path / os.fsdecode(b"e\xff"))
    assert answer.status == 2
    assert "timm opens no folder whose name is not UTF-8: name another" in answer.line


@pytest.mark.parametrize("name", [b"\xff.pth", b"\xff.safetensors"])
def test_weights_of_a_name_that_is_no_utf8(name: bytes, tmp_path: Path) -> None:
    path, weights = tmp_path / os.fsdecode(name), {"a": torch.arange(3.0)}
    path.write_bytes(saved(weights))
    if name.endswith(b"pth"):
        with path.open("wb") as file:
            torch.save(weights, file)
    assert torch.equal(read_weights(path)["a"], weights["a"])
