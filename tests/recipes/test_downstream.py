"""Recipes of downstream tasks: complete headers, options that their command knows, and words that win over them."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace

import pytest

from commands.calls import call
from mst import recipes
from mst.errors import ConfigError, UsageError
from mst.recipes import RECIPES, TASK_RECIPES, find_recipe, find_task_recipe
from mst.recipes.downstream import TaskRecipe
from mst.terminal.parsing import RecipeOption, parse_words

ALL = list(TASK_RECIPES.values())


@dataclass(frozen=True)
class Group:
    """A group of options.

    Attributes:
        size: two numbers.
        frozen: a flag.
        deep: another flag.
    """

    size: tuple[int, int] = (1, 1)
    frozen: bool = False
    deep: bool = True


@dataclass(frozen=True)
class Arguments(RecipeOption):
    """A command.

    Attributes:
        data: required.
        rate: a number.
    """

    data: str
    rate: float = 0.5
    group: Group = field(default_factory=Group)


MADE_UP = TaskRecipe(
    name="made-up",
    summary="s",
    paper_row="none",
    command="c",
    hardware="h",
    time="t",
    expected="e",
    note="n",
    task="evaluate fun",
    options={"rate": 0.25, "size": (3, 4), "frozen": True, "deep": False},
)


@pytest.fixture
def made_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(recipes.TASK_RECIPES, "made-up", MADE_UP)
    monkeypatch.setitem(recipes.TASK_RECIPES, "other", replace(MADE_UP, name="other", task="finetune"))


def parsed(*words: str) -> Arguments:
    found = parse_words(Arguments, ["--data", "d", *words], prog="mst evaluate fun")
    assert found is not None
    return found


@pytest.mark.usefixtures("made_up")
def test_words_win_over_the_recipe_and_the_recipe_over_defaults() -> None:
    assert parsed() == Arguments(data="d")
    every = Arguments(data="d", recipe="made-up", rate=0.25, group=Group((3, 4), frozen=True, deep=False))
    assert parsed("--recipe", "made-up") == parsed("--recipe=made-up") == every
    assert parsed("--rate", "2", "--recipe", "made-up") == replace(every, rate=2.0)
    changed = parsed("--recipe", "made-up", "--no-frozen", "--deep", "--size=5", "6")
    assert changed == replace(every, group=Group((5, 6)))


@pytest.mark.usefixtures("made_up")
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("made-upp", "unknown recipe made-upp; did you mean made-up?"),
        ("other", "--recipe other belongs to mst finetune"),
        ("debug", "--recipe debug belongs to mst pretrain"),
    ],
)
def test_a_recipe_that_does_not_fit_is_one_line(name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message.replace("?", r"\?")) as error:
        parsed("--recipe", name)
    assert error.value.exit_code == 2
    assert "\n" not in str(error.value)


def test_a_recipe_without_a_name() -> None:
    for words in (["--recipe"], ["--recipe", "--rate", "1"]):
        with pytest.raises(UsageError, match="--recipe needs a value"):
            parsed(*words)


@pytest.mark.parametrize("recipe", ALL, ids=lambda recipe: recipe.name)
def test_header_is_complete(recipe: TaskRecipe) -> None:
    for text in (recipe.summary, recipe.paper_row, recipe.hardware, recipe.time, recipe.expected, recipe.note):
        assert text
        assert "\n" not in text
    assert recipe.command.startswith(
        (f"mst {recipe.task} --recipe {recipe.name} ", f"mst {recipe.task} {recipe.name} ")
    )
    assert not any(name.startswith("-") or "_" in name for name in recipe.options)
    assert find_task_recipe(recipe.name, recipe.task) is recipe


@pytest.mark.parametrize("recipe", ALL, ids=lambda recipe: recipe.name)
def test_its_command_can_be_given_as_it_stands(recipe: TaskRecipe, capsys: pytest.CaptureFixture[str]) -> None:
    words = recipe.command.split()[1:]
    for place, word in enumerate(words[:-1]):
        if word in {"--backbone", "--data", "--out"}:
            words[place + 1] = "nowhere" if word != "--out" else "nowhere/else"
    answer = call(capsys, *words)
    assert (answer.status, "nowhere" in answer.line) == (2, True), answer.err


def test_names_are_those_of_one_recipe() -> None:
    assert not RECIPES.keys() & TASK_RECIPES.keys()
    with pytest.raises(ConfigError, match="linear-in1k is a recipe of mst evaluate linear, not of pre-training"):
        find_recipe("linear-in1k")


def test_listed_and_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert all(name in call(capsys, "recipes").out for name in TASK_RECIPES)
    assert [row["name"] for row in json.loads(call(capsys, "recipes", "--json").out)["tasks"]] == list(TASK_RECIPES)
    assert "--batch-size 1024" in call(capsys, "recipes", "linear-in1k").out
    one = json.loads(call(capsys, "recipes", "linear-in1k", "--json").out)
    assert one["options"]["mode"] == "augmented"
    assert one["task"] == "evaluate linear"
    assert "did you mean linear-in1k?" in call(capsys, "recipes", "linear-in1").line
