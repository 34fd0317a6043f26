"""`mst ablate`: every twin and seed is run once, interrupted ones go on, and one table compares them."""

from __future__ import annotations

import json
import statistics
from pathlib import Path

import pytest

import mst
from commands.calls import call, image_folder, labelled_folder
from mst.config.load import changed_keys
from mst.errors import Interrupted
from mst.recipes.ablations import FAMILIES
from mst.runtime.storage.results import append_jsonl, read_jsonl
from mst.runtime.storage.rundir import RunDir
from mst.workflows import pretraining

QUICK = (
    "--monitor.tensorboard",
    "false",
    "--runtime.precision",
    "fp32",
    "--runtime.workers",
    "0",
    "--train.epochs",
    "1",
)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return image_folder(tmp_path_factory.mktemp("images") / "set", 9)


def test_twins_and_seeds_interrupted_and_compared(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out, labelled = tmp_path / "out", labelled_folder(tmp_path / "labelled")
    limits = ("--eval-train-limit", "6", "--eval-val-limit", "3")
    words = (
        *("ablate", "decoder", "--recipe", "debug", "--data.train", images, "--eval", labelled, *limits),
        *("--out", out, *QUICK),
    )
    original, started = pretraining.pretrain, []

    def interrupted(config: mst.RunConfig, folder: Path, *, resume: bool) -> object:
        started.append(folder)
        if len(started) == 3:
            raise Interrupted("stopped at step 0 of 1", 2)
        return original(config, folder, resume=resume)

    monkeypatch.setattr(pretraining, "pretrain", interrupted)
    stopped = call(capsys, *words, "--seeds", "2")
    assert stopped.status == 130
    assert "the same mst ablate command goes on" in stopped.err.splitlines()[-1]
    assert not (out / "ablation.md").exists()
    first = (out / "cnn" / "seed_0" / "backbone.safetensors").read_bytes()

    answer = call(capsys, *words, "--seeds", "2", "--json")
    assert answer.status == 0, answer.err
    result = json.loads(answer.out)
    assert list(result["values"]) == ["cnn", "linear", "no-decoder"]
    assert (out / "cnn" / "seed_0" / "backbone.safetensors").read_bytes() == first
    for twin, values in result["values"].items():
        rows = [read_jsonl(out / twin / f"seed_{seed}" / "results.jsonl") for seed in range(2)]
        assert [len(found) for found in rows] == [1, 1]  # evaluated once
        assert values["knn_top1"] == [found[0]["metrics"]["top1"] for found in rows]
        assert {(found[0]["extra"]["train_images"], found[0]["extra"]["val_images"]) for found in rows} == {(6, 3)}
    assert result["values"]["no-decoder"]["psnr_masked"] == []
    config = mst.load_config(out / "linear" / "seed_1" / "config.json")
    assert (config.model.decoder, config.runtime.seed, config.recipe) == ("linear", 1, "debug-linear")
    differences = changed_keys(mst.load_config(out / "cnn" / "seed_1" / "config.json"), config)
    assert differences == ["model.decoder"]

    psnr = result["values"]["cnn"]["psnr_visible"]
    table = (out / "ablation.md").read_text()
    assert f"{statistics.fmean(psnr):.2f} ± {statistics.stdev(psnr):.2f} (2)" in table
    assert f"| cnn | {', '.join(f'{value:.2f}' for value in result['values']['cnn']['knn_top1'])} |" in table
    assert (out / "ablation.png").read_bytes().startswith(b"\x89PNG")

    for change, part in (
        (("--optimizer.lr", "0.1"), "was run with another --optimizer.lr"),
        (("--recipe", "quickstart"), "was made with --recipe debug"),
        (("--eval", labelled / "train"), "was made with --eval"),
        (("--eval-val-limit", "2"), "was made with --eval-val-limit 3"),
    ):
        refused = call(capsys, *words, *change)
        assert refused.status == 2
        assert part in refused.line


def test_other_evaluations_of_its_runs_change_nothing(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, labelled = tmp_path / "out", labelled_folder(tmp_path / "labelled")
    words = ("ablate", "head", "--recipe", "debug", "--data.train", images, "--eval", labelled, "--out", out, *QUICK)
    first = json.loads(call(capsys, *words, "--json").out)["values"]
    plain, bn = (RunDir(out / twin / "seed_0") for twin in ("plain", "bn"))
    own = read_jsonl(plain.results)[0]
    wrong = {**own, "metrics": {**own["metrics"], "top1": -1.0}}
    for row in ({**wrong, "backbone": f"random:{plain.root}"}, {**wrong, "protocol": {}}, {**wrong, "data": "other"}):
        append_jsonl(plain.results, row)
    assert json.loads(call(capsys, *words, "--json").out)["values"] == first
    assert len(read_jsonl(plain.results)) == 4  # its own evaluation is not repeated

    bn.ablation.write_text('{"task": "knn", "metr')  # damaged: done again
    bn.results.write_text(json.dumps(wrong) + "\n")
    assert json.loads(call(capsys, *words, "--json").out)["values"] == first
    assert [row["metrics"]["top1"] for row in read_jsonl(bn.results)] == [-1.0, *first["bn"]["knn_top1"]]


@pytest.mark.parametrize(
    ("words", "part"),
    [
        ("ablate", "name a family"),
        ("ablate strategy --recipe debug", "did you mean strategies?"),
        ("ablate head --data.train IMAGES --out OUT", "--recipe is missing"),
        ("ablate head --recipe debug --data.train IMAGES", "--out is missing"),
        ("ablate head --recipe debug --out OUT", "--data.train is missing"),
        ("ablate head --recipe debug --data.train IMAGES --out OUT --seeds 0", "--seeds 0: must be"),
        ("ablate head --recipe debug --data.train IMAGES --out OUT --eval-val-limit 9", "--eval, which is missing"),
        (
            "ablate head --recipe debug --data.train IMAGES --out OUT --eval IMAGES --eval-train-limit 0",
            "--eval-train-limit 0: must be a whole number of at least 1",
        ),
        ("ablate head --recipe debug --data.train IMAGES --out OUT --model.head-norm none", "sets itself"),
        ("ablate head --recipe debug --data.train IMAGES --out OUT --runtime.seed 3", "sets itself"),
        ("ablate head --recipe debug --data.train IMAGES --out IMAGES", "holds no ablation"),
        ("ablate head --recipe debug --data.train nowhere --out OUT", "does not exist"),
        ("ablate head --recipe debug --data.train IMAGES --out OUT --eval IMAGES", "are all of class deep"),
        (
            "ablate head --recipe debug --data.train IMAGES --out OUT --eval LABELLED --eval-train-limit 1",
            "--eval: the training images (1) are all of class cat",
        ),
    ],
)
def test_refused_calls(words: str, part: str, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    labelled = labelled_folder(tmp_path / "labelled")
    places = {"IMAGES": images, "OUT": tmp_path / "out", "LABELLED": labelled}
    answer = call(capsys, *(places.get(word, word) for word in words.split()))
    assert answer.status == 2
    assert part in answer.err.splitlines()[-1]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("family", FAMILIES)
def test_families_change_what_they_say(family: str) -> None:
    twins = FAMILIES[family]
    assert len({twin.name for twin in twins}) == len(twins)
    configs = [twin.apply(mst.RunConfig()) for twin in twins]
    assert all(configs.count(config) == 1 for config in configs)


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_every_twin_of_every_family_runs(
    family: str, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("--recipe", "debug", "--data.train", images, "--out", tmp_path / "out", "--json", *QUICK)
    answer = call(capsys, "ablate", family, *words)
    assert answer.status == 0, answer.err
    values = json.loads(answer.out)["values"]
    assert list(values) == [twin.name for twin in FAMILIES[family]]
    assert all(len(found["rankme"]) == 1 for found in values.values())


def test_a_table_that_was_edited_stays(images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    words = ("ablate", "decoder", "--recipe", "debug", "--data.train", images, "--out", out, *QUICK)
    out.mkdir()
    (out / "ablation.md").write_text("mine")
    assert "is not empty and holds no ablation" in call(capsys, *words).line
    identity = {"family": "decoder", "recipe": "debug", "eval": "", "eval_train_limit": "", "eval_val_limit": ""}
    (out / "ablation.json").write_text(json.dumps(identity))
    answer = call(capsys, *words)
    assert (answer.status, "ablation.md is there and was not written by mst ablate" in answer.line) == (2, True)
    assert (out / "ablation.md").read_text() == "mine"
