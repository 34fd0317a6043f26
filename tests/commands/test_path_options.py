"""Every option of every command that takes a path expands `~`; a new option must say whether it is a path."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

import pytest

import mst
from commands.calls import call
from mst.cli import COMMANDS
from mst.commands import evaluate, predict, submit
from mst.errors import UsageError
from mst.paths import user_path
from mst.terminal import parsing
from mst.terminal.parsing import flag, parse_words, path_marks

NO_PATHS = {"device", "family", "format", "name", "randaugment", "split", "train_split", "val_split", "recipe"}
NO_PATHS |= {"path_column", "label_column", "split_column", "license", "outputs", "push"}
NO_PATHS |= {"types", "account", "constraint", "gpus_per_node", "job_name", "mem", "partition", "qos", "time"}
"""Options of text that name no file."""


def records() -> dict[str, type[Any]]:
    """Return the options of every command by what its help is called."""
    found: dict[str, type[Any]] = {}

    def note(kind: type[Any], prog: str, *_: object) -> None:
        found[prog] = kind

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parsing, "_show_help", note)
        patch.setattr(parsing, "_with_settings", lambda kind: kind)
        for command in set(COMMANDS) - {"evaluate", "predict", "submit"}:
            importlib.import_module(f"mst.commands.{command}").run(["--help"])
        importlib.import_module("mst.commands.finetune").run(["--resume", "run", "--help"])
        for tasks in (evaluate.TASKS, predict.TASKS, submit.TASKS):
            for task in tasks.values():
                task(["--help"])
    return found


RECORDS = records()


def is_text(hint: Any) -> bool:
    """Whether a type is text, or may be."""
    if get_origin(hint) is Annotated:
        return is_text(get_args(hint)[0])
    return hint is str or any(map(is_text, get_args(hint)))


@pytest.mark.parametrize("prog", sorted(RECORDS))
def test_every_text_option_is_a_path_or_known_not_to_be_one(prog: str) -> None:
    assert len(RECORDS) > len(COMMANDS)
    unsaid = {
        leaf.name
        for leaf, hint in parsing._leaves(RECORDS[prog], marked=True)
        if is_text(hint) and not path_marks(hint)
    }
    assert unsaid <= NO_PATHS, "type it PathText or SourceText, or add it to NO_PATHS"


CASES = [
    (prog, leaf.name)
    for prog, kind in sorted(RECORDS.items())
    for leaf, hint in parsing._leaves(kind, marked=True)
    if path_marks(hint)
]


@pytest.mark.parametrize(("prog", "name"), CASES)
@pytest.mark.parametrize("form", ["two words", "one word"])
def test_every_path_option_expands_a_tilde(
    prog: str, name: str, form: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    others = [
        word
        for leaf, _ in parsing._leaves(RECORDS[prog])
        if parsing._required(leaf) and leaf.name != name
        for word in (flag(leaf.name), "x")
    ]
    given = "~/a.json"
    before = {"run": ["convert"], "out": ["convert", "x"]}[name] if prog == "mst checkpoint" else []
    before = ["x"] if (prog, name) == ("mst pack", "out") else before
    positional = (
        before
        or (prog, name) == ("mst pack", "source")
        or (name in {"path", "runs", "run"} and (prog, name) != ("mst inspect", "run"))
        or (name == "recipe" and prog != "mst ablate")
    )
    option = [flag(name), given] if form == "two words" else [f"{flag(name)}={given}"]
    words = [*before, given] if positional else option
    record = parsing._converted(RECORDS[prog], parsing._written([*words, *others]), prog)
    found = [getattr(part, name) for part in (record, *vars(record).values()) if hasattr(part, name)]
    assert str(tmp_path / "a.json") in (found[0] if isinstance(found[0], tuple) else found)


def test_a_home_that_is_nowhere_is_one_line_with_the_option(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "")
    with pytest.raises(UsageError, match=r"--out: ~/a\.npz: HOME is not set"):
        parse_words(RECORDS["mst embed"], ["--backbone", "b", "--data", "d", "--out", "~/a.npz"], prog="mst embed")


def test_a_run_below_the_home_folder(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """No folder is called `~`, wherever a path is written."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="does not exist"):
        mst.load_recipe("~/recipe.json")
    (tmp_path / "recipe.json").write_text('{"train": {"epochs": 3}}')
    for name in ("~/recipe.json", Path("~/recipe.json"), Path("recipe.json"), str(tmp_path / "recipe.json")):
        assert mst.load_recipe(name, {"data.train": Path("~/images")}).train.epochs == 3
    assert call(capsys, "inspect", "~/nothing").err.count(str(tmp_path / "nothing")) == 1
    assert user_path("~") == tmp_path
    assert not (tmp_path / "~").exists()
