"""One vocabulary: help of commands and recipes, short and long names, what was given, doctor, completion."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

import mst
from commands.calls import call
from mst.config.keys import SHORT, flag, setting_fields
from mst.config.load import dump_config, load_config
from mst.data.synthetic.scenes import write_scene_folder
from mst.recipes import RECIPES, base_config


def test_help_of_a_recipe_shows_its_values(capsys: pytest.CaptureFixture[str]) -> None:
    text = call(capsys, "pretrain", "vit-tiny-cifar10", "--help").out
    config = RECIPES["vit-tiny-cifar10"].config
    lines = {line.split()[0].rstrip(","): line for line in text.splitlines() if line.startswith("--")}
    assert f" {config.train.batch_size} " in lines["--train.batch-size"]
    assert f" {config.views.global_size} " in lines["--views.global-size"]
    assert "--epochs" in lines["--train.epochs"]
    assert "--out" in text
    assert f"--help-all lists all {len(setting_fields())} settings" in text
    assert "--objective.eligible-fraction" not in text
    other = call(capsys, "pretrain", "no-such", "--help")
    assert (other.status, "unknown recipe no-such" in other.line) == (2, True)


def test_help_of_a_command_in_both_forms(capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["report"], ["evaluate", "knn"], ["pretrain", "debug"], ["evaluate"]):
        assert call(capsys, "help", *words).out == call(capsys, *words, "--help").out
    assert "unknown command nothing" in call(capsys, "help", "nothing").line
    assert call(capsys, "help").out == call(capsys, "--help").out


def test_short_and_long_names(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_scene_folder(tmp_path / "images", {"train": 16}, size=32)
    words = ["plan", "debug", "--data.train", str(tmp_path / "images" / "train"), "--no-probe"]
    long = ["--train.epochs", "3", "--train.batch-size", "8", "--optimizer.lr", "0.001", "--runtime.seed", "5"]
    short = ["--epochs", "3", "--batch-size", "8", "--lr=0.001", "--seed", "5"]
    plans = [call(capsys, *words, *given, "--json").out for given in (long, short)]
    assert plans[0] == plans[1]
    assert json.loads(plans[0])["plan"]["batch_size"] == 8
    table = call(capsys, *words, *short).out
    assert "set by --optimizer.lr" in table
    assert "given; all else is of debug" in table
    assert "set by the recipe debug" in table
    assert set(SHORT.values()) <= set(setting_fields())
    # The commands without sections take the names of settings.
    wrong = call(capsys, "finetune", "--train.epochs", "x", "--data.channels", "3", "--backbone", "a", "--data", "b")
    assert "--out" in wrong.line or "--epochs x" in wrong.line


def test_what_was_given_is_kept_apart(tmp_path: Path) -> None:
    config = mst.load_recipe("debug", {"epochs": 2, "data.train": "images"})
    assert config.given == ("train.epochs", "data.train")
    (tmp_path / "whole.json").write_text(dump_config(config))
    assert load_config(tmp_path / "whole.json") == config
    (tmp_path / "mine.json").write_text('{"recipe": "debug", "train.epochs": 7}')
    mine = base_config(tmp_path / "mine.json")
    assert mine.given == ("train.epochs",)
    assert mine.train.batch_size == RECIPES["debug"].config.train.batch_size
    assert all(recipe.config.given == () for recipe in RECIPES.values())


def test_doctor(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    found = json.loads(call(capsys, "doctor", "--json").out)
    states = {finding["about"]: finding for finding in found["findings"]}
    for about in ("mst", "torch", "device", "compute type", "memory to use", "extra data", "compute threads"):
        assert states[about]["found"]
    assert found["warnings"] == sum(finding["state"] == "warn" for finding in found["findings"])
    assert all(finding["advice"] for finding in found["findings"] if finding["state"] == "warn")
    monkeypatch.setenv("RANK", "0")
    table = call(capsys, "doctor")
    assert table.status == 0
    assert "RANK set but not WORLD_SIZE" in " ".join(table.out.split())


def completed(script: Path, *words: str) -> list[str]:
    typed = " ".join(f"'{word}'" for word in ("mst", *words))
    code = f"source {script}; COMP_WORDS=({typed}); COMP_CWORD={len(words)}; _mst; printf '%s\\n' \"${{COMPREPLY[@]}}\""
    done = subprocess.run(["bash", "-c", code], capture_output=True, text=True, cwd=script.parent, check=True)
    assert done.stderr == ""
    return done.stdout.split()


def test_completion(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    script = tmp_path / "mst.bash"
    script.write_text(call(capsys, "completion", "bash").out)
    (tmp_path / "debug.json").touch()
    assert set(completed(script, "pre")) == {"pretrain", "predict"}
    assert completed(script, "help", "embe") == ["embed"]
    assert completed(script, "evaluate", "kn") == ["knn"]
    assert "debug" in completed(script, "pretrain", "deb")
    assert "debug.json" in completed(script, "pretrain", "deb")
    assert completed(script, "pretrain", "debug", "--train.ep") == ["--train.epochs"]
    assert completed(script, "evaluate", "knn", "--label-c") == ["--label-column"]
    assert flag("continue_") in completed(script, "finetune", "--cont")
    for shell in ("zsh", "fish"):
        assert "train.epochs" in call(capsys, "completion", shell).out
    assert "name a shell" in call(capsys, "completion").line
    assert shutil.which("bash")
    assert os.path.getsize(script) > 1000
