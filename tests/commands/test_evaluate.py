"""`mst evaluate` and `mst embed` from words to result rows, with a real tiny backbone and every mistake as one line."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from evaluate.fakes import colour_images, colour_sets
from mst.commands import embed as embed_command
from mst.commands import evaluate as evaluate_command
from mst.errors import MstError
from mst.evaluate.classification.linear_probe import LinearProtocol
from mst.evaluate.common.features import FeatureSettings
from mst.model.backbone import Backbone, BackboneSpec
from mst.model.backbone_file import load_backbone, save_backbone
from mst.model.build import build_backbone
from mst.runtime.storage.results import read_jsonl
from mst.workflows.embedding import embed
from mst.workflows.evaluation.labelled import evaluate_knn, evaluate_linear
from mst.workflows.subject import ImageOptions, load_subject

QUIET = FeatureSettings(precision="fp32", progress=False)
WORDS = ["--no-progress", "--precision", "fp32", "--device", "cpu"]


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    spec = BackboneSpec("vit_tiny_patch16_224", (16, 16), 3, 8, embed_dim=32, depth=2, num_heads=2)
    return build_backbone(spec, seed=3).eval()


@pytest.fixture
def run_folder(tmp_path: Path, backbone: Backbone) -> Path:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    save_backbone(folder / "backbone.safetensors", backbone, {"mean": [0.5] * 3, "std": [0.25] * 3})
    return folder


@pytest.fixture
def labelled(tmp_path: Path) -> Path:
    for split, count, seed in (("train", 16, 1), ("val", 8, 2)):
        images, labels = colour_images(count, 4, size=16, seed=seed)
        for index, (image, label) in enumerate(zip(images, labels, strict=True)):
            place = tmp_path / "data" / split / f"c{label}"
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image.permute(1, 2, 0).numpy()).save(place / f"{index}.png")
    return tmp_path / "data"


def test_knn_row_goes_to_the_run_folder_and_to_stdout(
    run_folder: Path, labelled: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["knn", "--backbone", str(run_folder), "--data", str(labelled), "--neighbors", "1", "5", "--headline", "5"]
    assert evaluate_command.run([*words, "--json", *WORDS]) == 0
    row = json.loads(capsys.readouterr().out)
    assert row == read_jsonl(run_folder / "results.jsonl")[0]
    assert row["task"] == "knn"
    assert row["metrics"]["top1"] == row["metrics"]["top1_k5"]
    assert row["protocol"]["transform"]["mean"] == [0.5] * 3
    assert row["protocol"]["transform"]["size"] == [16, 16]
    assert len(row["backbone_sha256"]) == 64
    assert row["extra"]["train_images"] == 16
    assert (row["data"], row["seed"]) == ("data", 0)


def test_random_is_the_same_network_with_other_weights(run_folder: Path, labelled: Path, tmp_path: Path) -> None:
    trained, untrained = load_subject(run_folder), load_subject(f"random:{run_folder}", seed=5)
    assert trained.backbone.spec == untrained.backbone.spec
    assert trained.mean_std == untrained.mean_std == ((0.5,) * 3, (0.25,) * 3)
    image = torch.rand(1, 3, 16, 16)
    assert not torch.allclose(trained.backbone(image), untrained.backbone(image))
    again = load_subject(f"random:{run_folder}", seed=5)
    assert torch.equal(untrained.backbone(image), again.backbone(image))
    result = evaluate_knn(f"random:{run_folder}", labelled, settings=QUIET, out=tmp_path / "elsewhere")
    assert result.backbone == f"random:{run_folder}"
    assert result.backbone_sha256 == ""
    assert read_jsonl(tmp_path / "elsewhere" / "results.jsonl")[0]["backbone"] == result.backbone
    assert not (run_folder / "results.jsonl").exists()


def test_linear_table_and_low_shot(run_folder: Path, labelled: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["linear", "--backbone", str(run_folder / "backbone.safetensors"), "--data", str(labelled)]
    short = ["--epochs", "3", "--lrs", "0.1", "1", "--train-per-class", "3", "--val-limit", "4"]
    assert evaluate_command.run([*words, *short, *WORDS]) == 0
    output = capsys.readouterr().out
    assert "top1_best_on_val" in output
    assert "12 training and 4 validation images" in output
    row = read_jsonl(run_folder / "results.jsonl")[0]
    assert row["protocol"]["blocks"] == 2
    assert row["protocol"]["labels"]["train_per_class"] == 3


def test_all_tasks_on_one_kept_file(run_folder: Path, labelled: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--backbone", str(run_folder), "--data", str(labelled), "--features", str(labelled.parent / "kept")]
    for task, more in (
        ("knn", ["--train-share", "0.5"]),
        ("linear", ["--lrs", "0.1", "--epochs", "1"]),
        ("logistic", ["--train-per-class", "3"]),
        ("retrieval", ["--database", "val", "--ranks", "1", "2"]),
    ):
        assert evaluate_command.run([task, *words, *more, *WORDS]) == 0
        shown = capsys.readouterr()
        assert "computed anew" not in shown.err
        assert ("are read from" in " ".join(shown.err.split())) == (task != "knn")
    rows = read_jsonl(run_folder / "results.jsonl")
    assert [row["task"] for row in rows] == ["knn", "linear", "logistic", "retrieval"]
    assert [row["extra"]["train_images"] for row in rows] == [8, 16, 12, 0]
    assert "penalty" in rows[2]["extra"]
    assert {row["data"] for row in rows} == {"data"}


def test_a_module_in_memory_and_sets_in_memory(backbone: Backbone) -> None:
    protocol = LinearProtocol(lrs=(0.1, 1.0), epochs=5)
    result = evaluate_linear(backbone, colour_sets(), protocol=protocol, settings=QUIET)
    assert result.backbone == "in memory"
    assert evaluate_linear(backbone, colour_sets(), protocol=protocol, settings=QUIET) == result
    assert evaluate_linear(backbone, colour_sets(), image=ImageOptions(size=(8, 8)), settings=QUIET) != result


def test_segmentation_table(run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tmp_path / "pairs"
    for part in ("images", "masks"):
        (root / part).mkdir(parents=True)
    for index in range(4):
        mask = np.zeros((16, 24), np.uint8)
        mask[:, 8:] = 1
        Image.fromarray(np.repeat(150 * mask[..., None], 3, 2)).save(root / "images" / f"{index}.jpg")
        Image.fromarray(mask).save(root / "masks" / f"{index}.png")
    (root / "train.txt").write_text("0\n1\n2")
    (root / "val.txt").write_text("3")
    (root / "classes.json").write_text('["dark", "bright", "absent"]')
    words = ["segmentation", "--backbone", str(run_folder), "--data", str(root), "--steps", "3", *WORDS]
    assert evaluate_command.run(words) == 0
    output = capsys.readouterr().out
    assert "miou" in output
    assert "absent" in output
    row = read_jsonl(run_folder / "results.jsonl")[0]
    assert row["task"] == "patch_segmentation"
    assert row["extra"]["per_class"][2]["iou"] is None


def test_embed_writes_features_and_paths(run_folder: Path, labelled: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (labelled / "val" / "c0" / "broken.jpg").write_bytes(b"no picture")
    out = labelled.parent / "made" / "features.npz"
    words = ["--backbone", str(run_folder), "--data", str(labelled / "val"), "--out", str(out), *WORDS]
    assert embed_command.run([*words, "--max-unreadable-share", "0.2", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["images"], said["dim"], len(said["unreadable"])) == (8, 32, 1)
    with np.load(out) as file:
        assert file["features"].shape == (8, 32)
        assert file["features"].dtype == np.float32
        assert file["paths"][0].endswith(".png")
        saved = file["features"]
    found = embed(
        run_folder, labelled / "val", out=out.with_suffix(".npy"), settings=FeatureSettings(128, 2, "fp32", 0.2)
    )
    np.testing.assert_allclose(found.features.numpy(), saved, rtol=1e-5, atol=1e-6)
    assert out.with_suffix(".txt").read_text().splitlines() == list(found.names)
    assert np.array_equal(np.load(out.with_suffix(".npy")), found.features.numpy())


def drop_classes(data: Path, _run: Path) -> None:
    shutil.rmtree(data / "train")
    (data / "train").mkdir()


def rename_class(data: Path, _run: Path) -> None:
    (data / "val" / "c3").rename(data / "val" / "zebra")


def remove_data(data: Path, _run: Path) -> None:
    shutil.rmtree(data)


def remove_backbone(_data: Path, run: Path) -> None:
    shutil.rmtree(run)


def damage_backbone(_data: Path, run: Path) -> None:
    (run / "backbone.safetensors").write_bytes(b"x" * 100)


@pytest.mark.parametrize("task", ["knn", "linear"])
@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (drop_classes, "no class folders"),
        (rename_class, "zebra"),
        (remove_data, "does not exist"),
        (remove_backbone, "does not exist"),
        (damage_backbone, "cannot read"),
    ],
)
def test_bad_input_is_one_line(
    task: str, break_it: Callable[[Path, Path], None], message: str, run_folder: Path, labelled: Path
) -> None:
    break_it(labelled, run_folder)
    with pytest.raises(MstError, match=message) as error:
        evaluate_command.run([task, "--backbone", str(run_folder), "--data", str(labelled), *WORDS])
    assert error.value.exit_code == 2
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["kn"], "unknown evaluation kn: .* did you mean knn"),
        (["knn"], "mst evaluate knn needs --backbone and --data"),
        (["knn", "--backbone", "a"], "mst evaluate knn needs --data"),
        (["knn", "--backbone", "a", "--data", "b", "--neighbours", "3"], "unknown option --neighbours; .* --neighbors"),
        (
            ["knn", "--backbone", "a", "--data", "b", "--neighbors", "x"],
            "neighbors x: must be a list of values, each a whole",
        ),
        (["knn", "--backbone", "a", "--data", "b", "--seed=one"], "--seed one: must be a whole number"),
        (["knn", "--backbone", "a", "--data", "b", "--seed"], "--seed needs a value: a whole number"),
        (["knn", "--backbone", "a", "--data", "b", "--seed", "1", "--seed", "x"], "--seed x: must be a whole number"),
        (["knn", "--backbone", "a", "--data", "b", "--seed", "--seed", "1"], "--seed needs a value: a whole number"),
        (["knn", "--backbone", "a", "--data", "b", "--size", "8", "8", "--size", "9"], "--size 9: must be 2 values"),
        (["knn", "--backbone", "a", "--data", "b", "--precision", "fp9", "--precision", "fp32"], "--precision fp9:"),
        (["knn", "--backbone", "a", "--data", "b", "--precision", "fp32", "--precision", "fp9"], "--precision fp9:"),
        (["knn", "--backbone", "a", "--data", "b", "c"], "unexpected word"),
        (["knn", "--backbone", "a", "--data", "b", "--size", "32"], "--size 32: must be 2 values, each a whole number"),
        (["linear", "--backbone", "a", "--data", "b", "--mode", "cachd"], "one of cached, augmented; .* mean cached"),
        (["knn", "--backbone", "a", "--data", "b", "--temperature", "-1"], "temperature -1.0: must be above 0"),
        (["knn", "--backbone", "a", "--data", "b", "--precision", "fp8"], "fp8: must be one of auto, fp32, bf16"),
        (["knn", "--backbone", "a", "--data", "b", "--device", "tpu"], "use auto, cpu, cuda"),
        (["linear", "--backbone", "a", "--data", "b", "--momentum", "2"], "--momentum 2.0: must be between 0 and 1"),
        (["linear", "--backbone", "a", "--data", "b", "--train-share", "2"], "train-share 2.0: must be"),
        (["linear", "--backbone", "a", "--data", "b", "--train-limit", "0"], "train-limit 0: must be at least 1"),
        (["segmentation", "--backbone", "a", "--data", "b", "--steps", "0"], "steps"),
        (["segmentation", "--backbone", "a", "--data", "b", "--lr", "nan"], "--lr nan: must be a finite number"),
        (
            ["logistic", "--backbone", "a", "--data", "b", "--penalties", "1", "inf"],
            "--penalties inf: must be a finite",
        ),
        (["knn", "--backbone", "a", "--data", "b", "--seed", "9" * 20], "--seed 9+: must be at most"),
    ],
)
def test_wrong_words_are_one_line(words: list[str], message: str) -> None:
    with pytest.raises(MstError, match=message) as error:
        evaluate_command.run(words)
    assert error.value.exit_code == 2
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--size", "15", "16"], "--size 15x16 is not a multiple of the patch size 8: use 8x16 or 16x16"),
        (["--seed", "-1"], "--seed -1: must be at least 0"),
        (["--size", "-8", "8"], "--size -8: must be at least 1"),
        (["--resize-ratio", "0.5"], "resize-ratio 0.5: must be at least 1"),
        (["--out", "{file}"], "is a file: name a folder"),
        (["--out", "{file}/below"], "which is a file: name a folder"),
    ],
)
def test_values_that_do_not_fit_the_backbone(words: list[str], message: str, run_folder: Path, labelled: Path) -> None:
    words = [word.format(file=run_folder / "config.json") for word in words]
    with pytest.raises(MstError, match=message):
        evaluate_command.run(["knn", "--backbone", str(run_folder), "--data", str(labelled), *words, *WORDS])


def test_a_result_that_cannot_be_written_is_shown(
    run_folder: Path, labelled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "results.jsonl").mkdir()
    words = ["knn", "--backbone", str(run_folder), "--data", str(labelled), "--out", str(tmp_path), *WORDS]
    assert evaluate_command.run(words) == 0
    shown = capsys.readouterr()
    assert "top1" in shown.out
    assert f"cannot write {tmp_path / 'results.jsonl'}" in shown.err


@pytest.mark.parametrize(("out", "message"), [("a.txt", r"ends in \.npz or "), (".npz", "npz")])
def test_embed_refuses_other_files(out: str, message: str, run_folder: Path, labelled: Path, tmp_path: Path) -> None:
    with pytest.raises(MstError, match=message):
        embed(run_folder, labelled, out=tmp_path / out)


def test_help_names_every_flag(capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate_command.run([]) == 0
    assert "mst evaluate linear --help" in capsys.readouterr().out
    for task, flag in (("knn", "--neighbors"), ("linear", "--held-out-share"), ("segmentation", "--loss-stride")):
        assert evaluate_command.run([task, "--help"]) == 0
        assert flag in capsys.readouterr().out
    assert embed_command.run(["--help"]) == 0
    assert "--max-unreadable-share" in capsys.readouterr().out


def test_images_of_other_channels(tmp_path: Path, labelled: Path) -> None:
    spec = BackboneSpec("vit_tiny_patch16_224", (16, 16), 5, 8, embed_dim=32, depth=1, num_heads=2)
    save_backbone(tmp_path / "five.safetensors", build_backbone(spec), {"mean": [0.5] * 5, "std": [0.5] * 5})
    with pytest.raises(MstError, match=r"has 3 channels, 5 are asked for by the backbone$"):
        evaluate_knn(tmp_path / "five.safetensors", labelled, settings=QUIET)


def test_channels_without_known_normalisation_are_refused(tmp_path: Path) -> None:
    spec = BackboneSpec("vit_tiny_patch16_224", (16, 16), 1, 8, embed_dim=32, depth=1, num_heads=2)
    save_backbone(tmp_path / "grey.safetensors", build_backbone(spec), {})
    assert load_backbone(tmp_path / "grey.safetensors").spec.channels == 1
    with pytest.raises(MstError, match="does not say mean and std of its 1 channels"):
        load_subject(tmp_path / "grey.safetensors").transform(ImageOptions())
    for mean, std in (([0.5, 0.5], [1.0]), ("x", 3), ([0.5], [0.0]), ([None], [1.0])):
        save_backbone(tmp_path / "grey.safetensors", build_backbone(spec), {"mean": mean, "std": std})
        with pytest.raises(MstError, match=r"(mean|std) (is|has) .*must be"):
            load_subject(tmp_path / "grey.safetensors").transform(ImageOptions())


def test_embed_replaces_its_own_files_and_no_others(run_folder: Path, labelled: Path, tmp_path: Path) -> None:
    photos = tmp_path / "photos.txt"
    photos.write_text("".join(f"{path}\n" for path in sorted(labelled.rglob("*.png"))))
    before = photos.read_bytes()
    with pytest.raises(MstError, match=r"photos.npy would replace --data .*photos.txt: name another file"):
        embed(run_folder, photos, out=tmp_path / "photos.npy", settings=QUIET)
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "mine.npz").write_bytes(b"mine")
    for name in ("notes.npy", "mine.npz"):
        with pytest.raises(MstError, match="is there and was not written by mst embed: move it away"):
            embed(run_folder, photos, out=tmp_path / name, settings=QUIET)
    for name in ("own.npy", "own.npz"):
        for limit in (3, 2):
            embed(run_folder, photos, out=tmp_path / name, limit=limit, settings=QUIET)
    assert len((tmp_path / "own.txt").read_text().splitlines()) == 2
    with pytest.raises(MstError, match="would replace --data"):  # its own listing, but what it reads
        embed(run_folder, tmp_path / "own.txt", out=tmp_path / "own.npy", limit=1, settings=QUIET)
    assert (photos.read_bytes(), (tmp_path / "notes.txt").read_text()) == (before, "mine")
    assert ((tmp_path / "mine.npz").read_bytes(), (tmp_path / "notes.npy").exists()) == (b"mine", False)


def test_results_among_the_classes_are_refused(
    run_folder: Path, labelled: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    classes = labelled / "train"
    for words in (["--out", str(classes / "results")], []):
        moved = run_folder
        if not words:
            moved = classes / "run"
            shutil.copytree(run_folder, moved)
            for number in range(2):
                Image.new("RGB", (16, 16), (number, 0, 0)).save(moved / f"preview-{number}.png")
        with pytest.raises(MstError, match=r"whose folders are classes: name a folder apart with --out"):
            evaluate_command.run(["knn", "--backbone", str(moved), "--data", str(classes), *words, *WORDS])
        shutil.rmtree(classes / "run", ignore_errors=True)
        assert not (classes / "results").exists()


def test_an_unfinished_run_says_so(run_folder: Path, labelled: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run_folder / "config.json").write_text(json.dumps({"objective": {}}))
    (run_folder / "plan.json").write_text(json.dumps({"total_steps": 39}))
    for step, said in ((6, True), (39, False)):
        (run_folder / "metrics.jsonl").write_text(json.dumps({"step": step}) + "\n")
        load_subject(run_folder, device="cpu")
        assert ("is unfinished: step 6 of 39: its weights are those" in capsys.readouterr().err) is said


def test_results_beside_the_classes_are_taken(run_folder: Path, labelled: Path) -> None:
    shutil.rmtree(labelled / "val")
    words = ["knn", "--backbone", str(run_folder), "--data", str(labelled), "--out", str(labelled / "results" / "one")]
    assert evaluate_command.run([*words, *WORDS]) == 0
    assert len(read_jsonl(labelled / "results" / "one" / "results.jsonl")) == 1
