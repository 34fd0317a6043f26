"""A training that is stopped goes on with its own data only, and every row says whose data it is."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from PIL import Image

from commands.calls import call, image_folder, labelled_folder
from evaluate.coco_folders import coco_content, write_coco
from evaluate.common.test_content import swap, write_pairs
from mst.cli import main
from mst.model.backbone import BackboneSpec
from mst.model.backbone_file import save_backbone
from mst.model.build import build_backbone
from mst.runtime.storage.results import read_jsonl

PRETRAIN = [
    "--runtime.workers",
    "0",
    "--runtime.device",
    "cpu",
    "--monitor.tensorboard",
    "false",
    "--train.epochs",
    "2",
]

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


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `images` (16) and `run`, whose newest checkpoint is of its third of four steps."""
    root = tmp_path_factory.mktemp("interrupted")
    image_folder(root / "images", 16)
    words = ["pretrain", "debug", "--data.train", root / "images", "--out", root / "run", *PRETRAIN]
    assert main([str(word) for word in [*words, "--checkpoint.every-steps", "1", "--checkpoint.keep", "9"]]) == 0
    shutil.rmtree(root / "run" / "checkpoints" / "step_4")
    return root


def copied(interrupted: Path, target: Path) -> tuple[Path, list[str]]:
    """A copy of it all; its run, and the words that resume it."""
    shutil.copytree(interrupted, target)
    words = ["pretrain", "--resume", str(target / "run"), "--data.train", str(target / "images")]
    return target / "run", words


def test_copied_images_are_the_same(interrupted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, words = copied(interrupted, tmp_path / "copy")
    assert call(capsys, *words).status == 0
    assert (run / "backbone.safetensors").read_bytes() == (interrupted / "run" / "backbone.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("add", "17 images, not 16"),
        ("remove", "15 images, not 16"),
        ("replace", "other files under the same names"),
        ("rename", "other file names"),
        ("swap", "other files under the same names"),
    ],
)
def test_changed_images_are_said_and_can_be_accepted(
    interrupted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], change: str, said: str
) -> None:
    ends = []
    for name in "ab":
        run, words = copied(interrupted, tmp_path / name)
        images = run.parent / "images"
        first, second = sorted(images.glob("*.*"))[:2]
        if change == "add":
            shutil.copy(first, images / "zz.png")
        elif change == "remove":
            first.unlink()
        elif change == "rename":
            first.rename(images / "zz.png")
        elif change == "swap":
            swap(first, second)
        else:
            for number, file in enumerate(sorted(images.rglob("*.*"))):
                Image.new("RGB", (40, 40), (9 * number, 200, 30)).save(file)
        refused = call(capsys, *words)
        assert refused.status == 2
        line = refused.err.splitlines()[-1]
        assert f"was started with other images ({said}): give them back, or go on with mst pretrain" in line
        assert "--accept-changed-data" in line
        answer = call(capsys, *words, "--accept-changed-data")
        assert answer.status == 0, answer.err
        assert f"from step 3 on with other images ({said})" in answer.err
        plan = json.loads((run / "plan.json").read_text())
        [past] = plan["accepted_data"]
        assert (past["until_step"], past["identity"]["count"]) == (3, 16)
        assert plan["total_steps"] == 2 * (plan["dataset_size"] // plan["batch_size"])
        assert call(capsys, *words).status == 0  # it is not asked again
        ends.append((run / "backbone.safetensors").read_bytes())
    assert ends[0] == ends[1]


def test_a_kill_after_accepting_does_not_ask_again(
    interrupted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, words = copied(interrupted, tmp_path / "copy")
    shutil.copy(sorted((run.parent / "images").glob("*.*"))[0], run.parent / "images" / "zz.png")
    assert call(capsys, *words, "--accept-changed-data").status == 0
    shutil.rmtree(run / "checkpoints" / "step_4")  # as if it was killed before its next checkpoint
    answer = call(capsys, *words)
    assert answer.status == 0, answer.err
    (run.parent / "images" / "zz.png").unlink()
    assert "(16 images, not 17)" in call(capsys, *words).err


def test_a_damaged_plan_is_no_dead_end(interrupted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, words = copied(interrupted, tmp_path / "copy")
    shutil.copy(sorted((run.parent / "images").glob("*.*"))[0], run.parent / "images" / "zz.png")
    (run / "plan.json").write_text("{")
    assert "(17 images, not 16)" in call(capsys, *words).err
    (run / "plan.json").write_text("{")
    answer = call(capsys, *words, "--accept-changed-data")
    assert answer.status == 0, answer.err


def test_a_run_of_an_older_version_goes_on_with_one_line(
    interrupted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, words = copied(interrupted, tmp_path / "copy")
    plan = json.loads((run / "plan.json").read_text())
    del plan["data_identity"], plan["accepted_data"]
    (run / "plan.json").write_text(json.dumps(plan))
    answer = call(capsys, *words)
    assert answer.status == 0, answer.err
    assert "was started by an older version, which did not note what its images held" in answer.err


def test_accepting_belongs_to_resuming(interrupted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["pretrain", "debug", "--data.train", interrupted / "images", "--out", tmp_path / "x"]
    answer = call(capsys, *words, "--accept-changed-data")
    assert (answer.status, "goes with --resume" in answer.line) == (2, True)
