"""The door: help without torch, exit statuses, nearest commands, and the lists that need no images."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import mst
from commands.calls import call, image_folder
from mst import cli
from mst.errors import Interrupted, RunFailure
from mst.recipes import RECIPES

ROOT = Path(__file__).resolve().parents[2]


def python(code: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src")}
    return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys, mst.cli; mst.cli.main(['--help']); print(sorted({'torch', 'pydantic', 'tyro'} & set(sys.modules)))"
    )
    done = python(code)
    assert done.returncode == 0
    assert done.stdout.startswith("usage: mst COMMAND")
    assert done.stdout.endswith("[]\n")


@pytest.mark.parametrize("words", ["recipes", "recipes debug", "pretrain --help", "pretrain debug --train.epochs x"])
def test_what_needs_no_images_needs_no_torch(words: str) -> None:
    done = python(f"import sys, mst.cli; mst.cli.main({words.split()!r}); print('torch' in sys.modules)")
    assert done.stdout.endswith("False\n"), done.stderr


def test_import_mst_needs_no_torch() -> None:
    assert python("import sys, mst; print('torch' in sys.modules, mst.__version__)").stdout.startswith("False ")


def test_version_is_that_of_the_package(capsys: pytest.CaptureFixture[str]) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert call(capsys, "--version").out == f"mst {project['version']}\n"
    assert mst.__version__ == project["version"]


def test_the_api_has_every_name_it_lists() -> None:
    for name in mst.__all__:
        assert getattr(mst, name) is not None
    with pytest.raises(AttributeError):
        mst.nothing  # noqa: B018


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_every_command_has_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    answer = call(capsys, command, "--help")
    assert answer.status == 0
    assert "usage" in answer.out.lower()


def test_pretrain_help_lists_every_setting(capsys: pytest.CaptureFixture[str]) -> None:
    text = call(capsys, "pretrain", "--help-all").out
    for word in ("--data.train", "--train.batch-size", "--objective.strategy", "attention_low", "(default: 0.3)"):
        assert word in text


def test_unknown_command(capsys: pytest.CaptureFixture[str]) -> None:
    answer = call(capsys, "pretran")
    assert answer.status == 2
    assert "unknown command pretran; did you mean pretrain?" in answer.line


def test_recipes_are_listed_and_printed(capsys: pytest.CaptureFixture[str]) -> None:
    listed = call(capsys, "recipes")
    assert all(name in listed.out for name in RECIPES)
    one = json.loads(call(capsys, "recipes", "debug", "--json").out)
    assert one["config"]["train"]["batch_size"] == RECIPES["debug"].config.train.batch_size
    assert "patch_size" in call(capsys, "recipes", "debug").out


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["recipes", "dbug"], "did you mean debug?"),
        (["recipes", "--jsn"], "did you mean --json?"),
        (["recipes", "debug", "more"], "unexpected word more"),
        (["plan"], "name a recipe"),
        (["plan", "debug"], "--data.train is missing"),
        (["plan", "debug", "--data.train"], "--data.train has no value"),
        (["inspect"], "name a folder"),
        (["inspect", "here", "--limit", "0"], "--limit 0: must be"),
        (["inspect", "here", "--limit"], "--limit needs a value"),
        (["inspect", "nowhere"], "nowhere does not exist"),
        (["evaluate", "knn", "--backbone", "nowhere", "--data", "nowhere"], "nowhere"),
        (["export"], "--backbone or --model is missing"),
        (["export", "x"], "unexpected word x"),
        (["export", "--backbone", "x", "--out", "y", "--format", "onx"], "must be one of timm"),
        (["export", "--backbone", "nowhere", "--out", "y"], "nowhere"),
        (["export", "--backbone", "nowhere", "--out", f"{__file__}/x"], "which is a file: name a folder"),
        (["embed", "--backbone", "nowhere", "--data", "x", "--out", f"{__file__}/x.npz"], "is a file: name a folder"),
        (["compare", "nowhere", "--plot", f"{__file__}/x.png"], "is a file: name a folder"),
        (["report", "nowhere"], "nowhere"),
        (["evaluate", "knn", "--backbone", "nowhere", "--data", ""], "--data '' is empty"),
        (["finetune", "--backbone", "nowhere", "--data", "", "--out", "run"], "--data '' is empty"),
        (["embed", "--backbone", "nowhere", "--data=", "--out", "x.npz"], "--data '' is empty"),
        (["compare", "nowhere", ""], "'' is empty"),
    ],
)
def test_wrong_calls(words: list[str], part: str, capsys: pytest.CaptureFixture[str]) -> None:
    answer = call(capsys, *words)
    assert answer.status == 2
    assert part in answer.line


@pytest.mark.parametrize(
    ("error", "status", "text"),
    [
        (RunFailure("disk full"), 1, "mst: error: disk full"),
        (Interrupted("saved", 15), 143, "mst: saved"),
        (KeyboardInterrupt(), 130, "mst: interrupted"),
        (
            PermissionError(errno.EACCES, "Permission denied", "x.npz"),
            1,
            "mst: error: x.npz: Permission denied; give this user the permission, or name another place",
        ),
    ],
)
def test_statuses(
    error: BaseException,
    status: int,
    text: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fails(_: list[str]) -> int:
        raise error

    monkeypatch.setattr(cli, "_dispatch", fails)
    answer = call(capsys, "recipes")
    assert (answer.status, answer.err) == (status, f"{text}\n")


def test_an_error_about_a_whole_file_is_still_a_line_to_read(capsys: pytest.CaptureFixture[str]) -> None:
    said = call(capsys, "inspect", "x" * 70_000 + "y").line
    assert len(said) < 5000
    assert "x" * 3000 in said
    assert "[...]" in said


def test_a_bug_is_one_line_and_a_file(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(_: list[str]) -> int:
        raise ZeroDivisionError("no\nway")

    monkeypatch.setattr(cli, "_dispatch", fails)
    monkeypatch.delenv("MST_DEBUG", raising=False)
    answer = call(capsys, "recipes")
    assert answer.status == 1
    trace = Path(answer.line.partition("the full trace is in ")[2].partition(",")[0])
    assert "ZeroDivisionError" in trace.read_text()
    trace.unlink()
    monkeypatch.setenv("MST_DEBUG", "1")
    assert "Traceback" in call(capsys, "recipes").err


def test_a_reader_that_has_gone_ends_it_as_shells_expect() -> None:
    code = "import mst.cli, sys; sys.exit(mst.cli.main(['recipes', 'debug']))"
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src")}
    with subprocess.Popen(
        [sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as child:
        assert child.stdout is not None
        assert child.stderr is not None
        child.stdout.close()
        assert child.stderr.read() == b""
    assert child.returncode == 141


def test_inspect_counts_what_is_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = image_folder(tmp_path / "images", 6)
    (folder / "broken.png").write_bytes(b"nothing")
    summary = json.loads(call(capsys, "inspect", folder, "--json").out)
    assert (summary["images"], summary["readable"]) == (7, 6)
    assert summary["unreadable"][0]["path"].endswith("broken.png")
    assert summary["sizes"] == {"40x40": 6}
    assert summary["formats"] == {"JPEG": 6}
    assert all(0 < value < 1 for value in summary["mean"] + summary["std"])
    assert "broken.png" in call(capsys, "inspect", folder).out
    assert "None" not in call(capsys, "inspect", folder / "broken.png").out


def test_flags_can_be_switched_off(capsys: pytest.CaptureFixture[str]) -> None:
    assert call(capsys, "recipes", "debug", "--json", "--no-json").out.startswith("name")
    assert "did you mean --json?" in call(capsys, "recipes", "--no-jsn").line


def test_plan_says_why(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = image_folder(tmp_path / "images")
    answer = call(capsys, "plan", "debug", "--data.train", folder, "--json", "--runtime.precision", "fp32")
    planned = json.loads(answer.out)
    assert planned["plan"]["total_steps"] == 2
    assert planned["plan"]["reasons"]["lr"].startswith("linear rule")
    assert planned["precision"] == "float32: asked for"
    assert planned["estimate"]["memory_bytes"] > 1e6
    assert planned["estimate"]["total_seconds"] > 0
    shown = call(capsys, "plan", "debug", "--data.train", folder, "--no-probe").out
    assert "linear rule" in shown
    assert "largest memory" not in shown
