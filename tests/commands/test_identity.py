"""A training that is stopped goes on with its own data only, and every row says whose data it is."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from commands.calls import call, labelled_folder
from evaluate.coco_folders import coco_content, write_coco
from evaluate.test_content import swap, write_pairs
from mst.model.backbone import BackboneSpec
from mst.model.backbone_file import save_backbone
from mst.model.build import build_backbone
from mst.runtime.results import read_jsonl

DETECTION = [
    "--epochs",
    "1",
    "--batch-size",
    "2",
    "--short-sides",
    "48",
    "--long-side",
    "64",
    "--channels",
    "8",
    "--head-dim",
    "16",
    "--anchor-size",
    "8",
    "--no-progress",
    "--precision",
    "fp32",
    "--device",
    "cpu",
    "--picture-limit",
    "0",
]
SEGMENTATION = [
    "--stride",
    "16",
    "16",
    "--size",
    "16",
    "16",
    "--steps",
    "2",
    "--batch-size",
    "2",
    "--no-progress",
    "--device",
    "cpu",
]
FINETUNE = ["--epochs", "1", "--batch-size", "4", "--device", "cpu", "--workers", "0", "--no-progress"]


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    spec = BackboneSpec("vit_tiny_patch16_224", (32, 32), 3, 16, embed_dim=32, depth=2, num_heads=2)
    file = tmp_path_factory.mktemp("backbone") / "backbone.safetensors"
    save_backbone(file, build_backbone(spec, seed=3).eval(), {})
    return file


def swapped_categories(root: Path) -> None:
    for split in ("train", "val"):
        content = coco_content()
        one, two = content["categories"]
        one["name"], two["name"] = two["name"], one["name"]
        write_coco(root, content, split)


@pytest.mark.parametrize("change", ["other images", "swapped categories"])
def test_a_detector_of_one_data_set_is_not_one_of_another(
    backbone: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], change: str
) -> None:
    for name in "ab":
        for split in ("train", "val"):
            write_coco(tmp_path / name, split=split)
    if change == "other images":
        swap(tmp_path / "b" / "images" / "a.png", tmp_path / "b" / "images" / "b.png")
    else:
        swapped_categories(tmp_path / "b")
    words = ["evaluate", "detection", "--backbone", backbone, "--checkpoints", tmp_path / "ck", *DETECTION, "--data"]
    first = call(capsys, *words, tmp_path / "a", "--out", tmp_path / "out")
    assert first.status == 0, first.err
    shutil.copytree(tmp_path / "a", tmp_path / "elsewhere" / "a")
    assert call(capsys, *words, tmp_path / "elsewhere" / "a").status == 0  # a copy is the same data
    answer = call(capsys, *words, tmp_path / "b")
    assert answer.status == 2
    assert f"{tmp_path / 'ck'} holds a training with other contents of the data" in answer.err.splitlines()[-1]
    row = read_jsonl(tmp_path / "out" / "results.jsonl")[-1]
    assert (row["data"], row["data_identity"]["name"]) == ("a", str(tmp_path / "a"))
    assert row["data_identity"]["count"] == 6


def test_masks_and_classes_are_part_of_the_data(
    backbone: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_pairs(tmp_path / "pairs")
    words = ["evaluate", "segmentation", "--backbone", backbone, "--data", data, "--checkpoints", tmp_path / "ck"]
    assert call(capsys, *words, *SEGMENTATION).status == 0
    swap(data / "masks" / "a.png", data / "masks" / "b.png")
    answer = call(capsys, *words, *SEGMENTATION)
    assert (answer.status, "other contents of the data" in answer.err) == (2, True)


def test_swapped_class_folders_are_refused(backbone: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, out = labelled_folder(tmp_path / "data", val=("cat", "dog")), tmp_path / "out"
    assert call(capsys, "finetune", "--backbone", backbone, "--data", data, "--out", out, *FINETUNE).status == 0
    [row] = read_jsonl(out / "results.jsonl")
    assert row["data_identity"]["count"] == 16
    (out / "results.jsonl").unlink()  # as after a kill between checkpoint and row
    for part in ("train", "val"):
        (data / part / "cat").rename(data / part / "x")
        (data / part / "dog").rename(data / part / "cat")
        (data / part / "x").rename(data / part / "dog")
    answer = call(capsys, "finetune", "--resume", out)
    assert (answer.status, "other contents of the data" in answer.err) == (2, True)


def test_rows_of_equal_data_have_equal_digests(
    backbone: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = labelled_folder(tmp_path / "one" / "data", val=("cat", "dog"))
    shutil.copytree(data, tmp_path / "two" / "data")
    shutil.copytree(data, tmp_path / "three" / "data")
    swap(*sorted((tmp_path / "three" / "data" / "val" / "cat").iterdir())[:2])
    digests = {}
    for name in ("one", "two", "three"):
        words = ["evaluate", "knn", "--backbone", backbone, "--data", tmp_path / name / "data", "--no-progress"]
        row = json.loads(call(capsys, *words, "--neighbors", "1", "--headline", "1", "--json").out)
        digests[name] = row["data_identity"]["digest"]
    assert digests["one"] == digests["two"] != digests["three"]
