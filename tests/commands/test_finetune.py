"""`mst finetune` from words to a backbone, a classifier and a row; stopped and resumed; mistakes as one line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from commands.calls import call, labelled_folder
from mst.checkpoint.store import CheckpointStore
from mst.model.backbone import BackboneSpec
from mst.model.backbone_file import load_backbone, save_backbone
from mst.model.build import build_backbone
from mst.runtime.storage.results import read_jsonl
from mst.workflows.finetuning import training as finetuning

VIT = BackboneSpec("vit_tiny_patch16_224", (32, 32), 3, 16, embed_dim=32, depth=2, num_heads=2)
SWIN = BackboneSpec("swin_tiny_patch4_window7_224", (64, 64), 3, 32, embed_dim=16, depth=1, num_heads=1)
FAST = ["--epochs", "2", "--batch-size", "4", "--base-lr", "0.02", "--device", "cpu", "--workers", "0", "--no-progress"]
TIMES = {"seconds", "images_per_second", "data_wait", "memory_gb"}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return labelled_folder(tmp_path_factory.mktemp("data"), val=("cat", "dog"))


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("vit"), VIT)


def saved(folder: Path, spec: BackboneSpec) -> Path:
    statistics = {"mean": [0.5] * spec.channels, "std": [0.25] * spec.channels}
    save_backbone(folder / "backbone.safetensors", build_backbone(spec, seed=1), statistics)
    return folder / "backbone.safetensors"


def test_continue_starts_and_goes_on_with_one_command(
    data: Path, backbone: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    words = ["finetune", "--backbone", backbone, "--data", data, "--out", out, "--json", "--continue", *FAST]
    first = call(capsys, *words)
    assert first.status == 0, first.err
    again = call(capsys, *words, "--workers", "1", "--device", "auto")
    assert (again.status, again.out) == (0, first.out)
    assert "is finished" in again.err
    said = call(capsys, *words, "--base-lr", "0.5", "--seed", "3").line
    assert "was started with other settings: base_lr (was 0.02, now 0.5), seed (was 0, now 3): name a new" in said
    assert "use one of them" in call(capsys, *words, "--overwrite").line
    (out / "results.jsonl").unlink()  # as if it had been killed before the end
    assert call(capsys, *words).status == 0
    assert len(read_jsonl(out / "results.jsonl")) == 1


def test_a_row_and_what_other_commands_take(
    data: Path, backbone: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    words = ["finetune", "--backbone", backbone, "--data", data, "--out", out, "--json", *FAST]
    answer = call(capsys, *words, "--precision", "bf16")
    assert answer.status == 0, answer.err
    row = json.loads(answer.out)
    assert row == read_jsonl(out / "results.jsonl")[-1]
    assert (row["task"], row["protocol"]["layer_decay"], row["protocol"]["lr"]) == ("finetune", 0.75, 0.02 * 4 / 256)
    names = {"top1", "balanced_accuracy", "auroc"}  # few classes: no top-5
    assert set(row["metrics"]) == names | {f"{name}_se" for name in names}
    assert (row["extra"]["train_images"], row["extra"]["val_images"], row["extra"]["steps"]) == (8, 8, 4)
    assert json.loads((out / "classes.json").read_text()) == ["cat", "dog"]
    assert load_file(out / "classifier.safetensors")["weight"].shape == (2, 32)
    trained = load_backbone(out)
    assert trained.metadata["mean"] == [0.5] * 3
    assert not torch.equal(
        trained.timm_state_dict()["blocks.0.attn.qkv.weight"],
        load_backbone(backbone).timm_state_dict()["blocks.0.attn.qkv.weight"],
    )
    assert [r["val_top1"] for r in read_jsonl(out / "metrics.jsonl") if "val_top1" in r] == [row["metrics"]["top1"]]
    assert (
        call(capsys, "evaluate", "knn", "--backbone", out, "--data", data, "--neighbors", "2", "--headline", "2").status
        == 0
    )
    assert call(capsys, "report", out).status == 0
    assert "already holds a run" in call(capsys, *words).line
    assert call(capsys, *words, "--overwrite").status == 0


def test_stopped_and_resumed_is_bit_equal(
    data: Path, backbone: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [
        "finetune",
        "--backbone",
        f"random:{backbone}",
        "--data",
        data,
        *FAST,
        "--epochs",
        "3",
        "--batch-size",
        "4",
    ]
    more = ["--checkpoint-every", "2", "--accumulate", "2", "--repeats", "3"]
    assert call(capsys, *words, *more, "--out", tmp_path / "whole").status == 0
    own, steps = finetuning.batch_loss, []

    def dying(*arguments: object) -> object:
        steps.append(1)
        if len(steps) == 8:
            raise KeyboardInterrupt
        return own(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(finetuning, "batch_loss", dying)
    assert call(capsys, *words, *more, "--out", tmp_path / "cut").status == 130
    monkeypatch.setattr(finetuning, "batch_loss", own)
    assert call(capsys, "finetune", "--resume", tmp_path / "cut").status == 0
    for name in ("backbone.safetensors", "classifier.safetensors", "results.jsonl"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    rows = [
        [{k: v for k, v in row.items() if k not in TIMES} for row in read_jsonl(tmp_path / name / "metrics.jsonl")]
        for name in ("whole", "cut")
    ]
    assert rows[0] == rows[1]
    assert CheckpointStore(tmp_path / "cut" / "checkpoints", keep=2).steps() == [4, 6]
    (tmp_path / "cut" / "run.lock").write_text("process 1 on elsewhere\n")  # as a kill at the very end leaves it
    again = call(capsys, "finetune", "--resume", tmp_path / "cut", "--json")
    assert not (tmp_path / "cut" / "run.lock").exists()
    assert "finished: nothing to do" in again.err
    assert len(read_jsonl(tmp_path / "cut" / "results.jsonl")) == 1
    assert "holds the settings of mst finetune" in call(capsys, "pretrain", "--resume", tmp_path / "cut").line
    (tmp_path / "cut" / "results.jsonl").write_text("[]\n{}\n")
    for name in ("plan.json", "config.json"):
        for content in ("{", "{}") if name == "plan.json" else ("{",):
            (tmp_path / "cut" / name).write_text(content)
            answer = call(capsys, "finetune", "--resume", tmp_path / "cut")
            assert (answer.status, f"{name} is damaged" in answer.line) == (2, True), answer.err


def test_swin_oblong_other_channels_and_from_scratch(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    swin = saved(tmp_path, SWIN)
    short = [*FAST, "--epochs", "1", "--batch-size", "4", "--drop-path", "0.2", "--clip-norm", "5"]
    answer = call(
        capsys, "finetune", "--backbone", swin, "--data", data, "--out", tmp_path / "s", "--size", "64", "96", *short
    )
    assert answer.status == 0, answer.err
    assert load_backbone(tmp_path / "s").spec.image_size == (64, 96)
    (tmp_path / "grey").mkdir()
    grey = saved(tmp_path / "grey", BackboneSpec("vit_tiny_patch16_224", (32, 32), 1, 16, 32, 2, 2))
    assert call(capsys, "finetune", "--backbone", grey, "--data", data, "--out", tmp_path / "g", *short).status == 0
    scratch = ["finetune", "deit-small-in1k-supervised", "--backbone", "scratch:vit_tiny_patch16_224", "--data", data]
    answer = call(capsys, *scratch, "--out", tmp_path / "f", "--size", "16", "32", *short, "--json")
    assert answer.status == 0, answer.err
    protocol = json.loads(answer.out)["protocol"]
    assert (protocol["repeats"], protocol["layer_decay"], protocol["mixup"]) == (3, 1.0, 0.8)
    assert protocol["recipe"] == "deit-small-in1k-supervised"


def test_learns(data: Path, backbone: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for part in ("train", "val"):
        for name, level in (("dark", 40), ("bright", 200)):
            (tmp_path / "d" / part / name).mkdir(parents=True)
            for number in range(4):
                Image.new("RGB", (32, 32), (level + number,) * 3).save(tmp_path / "d" / part / name / f"{number}.png")
    plain = ["--randaugment", "none", "--erasing", "0", "--mixup", "0", "--cutmix", "0", "--drop-path", "0"]
    words = ["finetune", "--backbone", f"random:{backbone}", "--data", tmp_path / "d", "--out", tmp_path / "o"]
    answer = call(capsys, *words, *FAST, "--epochs", "15", "--base-lr", "0.1", *plain, "--json")
    assert json.loads(answer.out)["metrics"]["top1"] == 100.0


def test_mistakes(data: Path, backbone: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = {"--backbone": backbone, "--data": data, "--out": tmp_path / "o"}
    one = labelled_folder(tmp_path / "one", train=("cat",), val=("cat",))
    unknown = labelled_folder(tmp_path / "unknown", val=("cow",))
    (tmp_path / "empty" / "train").mkdir(parents=True)
    (tmp_path / "empty" / "val").mkdir()
    five = saved(tmp_path, BackboneSpec("vit_tiny_patch16_224", (32, 32), 5, 16, 32, 2, 2))
    for changes, message in (
        ({"--data": tmp_path / "empty"}, "has no class folders"),
        ({"--data": one}, "has one class, cat: at least two"),
        ({"--data": unknown}, "has 1 class that"),
        ({"--data": tmp_path / "nowhere"}, "does not exist"),
        ({"--backbone": tmp_path / "nothing"}, "does not exist"),
        ({"--backbone": "scratch:resnet50"}, "is not a network of patch tokens"),
        ({"--backbone": "scratch:vit_tinny"}, "is not a timm model"),
        ({"--channels": 5}, "takes images of 3"),
        ({"--backbone": five}, f"has 3 channels, 5 are asked for by --backbone {five}"),
        ({"--backbone": "scratch:vit_tiny_patch16_224", "--channels": 5}, "5 are asked for by --channels"),
        ({"--size": [30, 32]}, "--size 30x32 is not a multiple of the patch size 16"),
        ({"--batch-size": 16}, "larger than the training set (8): at most 8"),
        ({"--layer-decay": 2}, "--layer-decay 2.0: must be at most 1"),
        ({"--randaugment": "foo"}, "--randaugment foo"),
        ({"--randaugment": "rand-bogus"}, "timm does not know bogus"),
        ({"--workers": -5}, "--workers -5: must be at least 0, or -1"),
        ({"--max-unreadable-share": 2}, "--max-unreadable-share 2.0: must be between 0 and 1"),
        ({"--repeats": 9}, "--repeats 9: must be at most --batch-size 4"),
        ({"--seed": -1, "--backbone": "scratch:vit_tiny_patch16_224"}, "--seed -1: must be at least 0"),
        ({"--mixup": "nan"}, "--mixup nan: must be a finite number"),
        ({"--out": backbone / "run", "--data": tmp_path / "nowhere"}, "which is a file: name a folder"),
        ({"--out": data / "run"}, "lie one in the other"),
        ({"--epoch": 2}, "unknown option --epoch"),
    ):
        options = {**base, "--batch-size": 4, **changes}
        words = [
            word for flag, value in options.items() for word in (flag, *(value if isinstance(value, list) else [value]))
        ]
        answer = call(capsys, "finetune", *words, "--device", "cpu")
        assert (answer.status, message in answer.line) == (2, True), answer.err
        assert not (tmp_path / "o").exists()
    for words, message in (
        ([], "needs --backbone and --data and --out"),
        (["--resume", tmp_path / "none"], "holds no run of mst finetune"),
        (["--resume", tmp_path / "none", "--lr", 1], "unknown option --lr"),
        (["vit-tiny-cifar10", "--data", data, "--out", tmp_path / "o"], "belongs to mst pretrain"),
    ):
        answer = call(capsys, "finetune", *words)
        assert (answer.status, message in answer.line) == (2, True), answer.err


def test_unreadable_images_are_replaced_and_listed(
    data: Path, backbone: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(data, broken)
    next((broken / "train" / "cat").iterdir()).write_bytes(b"no image")
    words = ["finetune", "--backbone", backbone, "--data", broken, "--out", tmp_path / "o", *FAST]
    answer = call(capsys, *words, "--max-unreadable-share", "0.05")
    assert (answer.status, "mend or remove them, or raise --max-unreadable-share" in answer.err) == (2, True)
    words.append("--overwrite")
    assert call(capsys, *words, "--max-unreadable-share", "0.5").status == 0
    assert len((tmp_path / "o" / "unreadable.txt").read_text().splitlines()) == 1


def test_validation_images_that_cannot_be_read_are_found_before_the_training(
    data: Path, backbone: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(data, broken)
    image = sorted((broken / "val" / "cat").iterdir())[0]
    image.write_bytes(image.read_bytes()[:-200])  # its header is sound
    words = ["finetune", "--backbone", backbone, "--data", broken, "--out", tmp_path / "o", *FAST]
    answer = call(capsys, *words, "--max-unreadable-share", "0.05")
    assert answer.status == 2
    assert image.name in answer.line
    assert "mend or remove them, or raise --max-unreadable-share" in answer.line
    assert not (tmp_path / "o").exists()
    assert call(capsys, *words, "--max-unreadable-share", "0.5").status == 0


def test_overwrite_spares_images_and_weights_that_names_elsewhere_lead_to(
    backbone: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, data = tmp_path / "run", labelled_folder(tmp_path / "data")
    kept = labelled_folder(run / "kept")
    (run / "config.json").write_text('{"recipe": "finetune", "task": "finetune"}')
    shutil.copytree(backbone.parent, run / "weights")
    words = ["finetune", "--out", run, "--overwrite", *FAST, "--data", data, "--backbone"]
    name = "vit_tiny_patch16_224"
    for source in (f"random:{run / 'weights'}", f"{name}={run / 'weights' / backbone.name}"):
        assert "holds the weights to start from" in call(capsys, *words, source).line
    (data / "val" / "dog").symlink_to(kept / "train" / "dog")
    answer = call(capsys, *words, backbone)
    assert (answer.status, "which --overwrite would delete: name another folder" in answer.line) == (2, True)
    assert len([path for path in kept.rglob("*") if path.is_file()]) == 12


def test_a_finished_run_goes_on_for_longer(
    data: Path, backbone: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    words = ["finetune", "--backbone", backbone, "--data", data, *FAST]
    assert call(capsys, *words, "--out", out).status == 0
    assert (
        "is a training of 2 epochs: name more than 2" in call(capsys, "finetune", "--resume", out, "--epochs", "2").line
    )
    shutil.copytree(out, tmp_path / "cut")
    answer = call(capsys, "finetune", "--resume", out, "--epochs", "5", "--json")
    assert answer.status == 0, answer.err
    row = json.loads(answer.out)
    assert (row["protocol"]["epochs"], row["protocol"]["ended"], row["extra"]["steps"]) == (5, [2], 10)
    again = call(capsys, "finetune", "--resume", out, "--epochs", "5", "--json")
    assert (again.status, json.loads(again.out)) == (0, row)
    own, steps = finetuning.batch_loss, []

    def dying(*arguments: object) -> object:
        steps.append(1)
        if len(steps) == 3:
            raise KeyboardInterrupt
        return own(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(finetuning, "batch_loss", dying)
    assert call(capsys, "finetune", "--resume", tmp_path / "cut", "--epochs", "5").status == 130
    monkeypatch.setattr(finetuning, "batch_loss", own)
    more = call(capsys, "finetune", "--resume", tmp_path / "cut", "--epochs", "9")
    assert "is not at the end of its 5 epochs, whose learning rates are planned: finish it first" in more.line
    assert call(capsys, "finetune", "--resume", tmp_path / "cut").status == 0
    for name in ("backbone.safetensors", "classifier.safetensors"):
        assert (tmp_path / "cut" / name).read_bytes() == (out / name).read_bytes()
    assert json.loads((out / "plan.json").read_text())["total_steps"] == 10
    assert call(capsys, "report", out).status == 0


def test_from_trained_and_from_fresh_weights_are_compared(
    data: Path, backbone: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, start in (("trained", str(backbone)), ("fresh", f"random:{backbone}")):
        assert (
            call(capsys, "finetune", "--backbone", start, "--data", data, "--out", tmp_path / name, *FAST).status == 0
        )
    answer = call(capsys, "compare", tmp_path / "fresh", tmp_path / "trained", "--json")
    (line,) = [line for line in json.loads(answer.out)["lines"] if line["metric"] == "top1"]
    assert None not in line["values"]
    for name in ("trained", "fresh"):
        assert call(capsys, "report", tmp_path / name).status == 0
        page = (tmp_path / name / "report.html").read_text()
        assert "from trained weights" in page
        assert "Where it goes wrong" in page
    shutil.rmtree(tmp_path / "fresh")
    assert call(capsys, "report", tmp_path / "trained").status == 0
    assert "Not compared with fresh weights" in (tmp_path / "trained" / "report.html").read_text()
