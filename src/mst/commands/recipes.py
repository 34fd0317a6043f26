"""`mst recipes`: list the recipes, or print one complete."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Annotated

import tyro
from rich.table import Table
from rich.text import Text

from mst.config.load import dump_config
from mst.recipes import RECIPES, TASK_RECIPES, find_recipe
from mst.recipes.downstream import TaskRecipe
from mst.recipes.record import Recipe
from mst.terminal.output import emit, emit_json
from mst.terminal.parsing import parse_words

LARGE = ("config", "options")
"""What a recipe's header leaves out."""


@dataclass(frozen=True)
class RecipesOptions:
    """List the recipes, or print one complete."""

    name: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="NAME")] = ""
    """The recipe to print; none = list all."""
    json: bool = False
    """One JSON object on stdout."""


def run(argv: Sequence[str]) -> int:
    """Run the command; return the exit status."""
    options = parse_words(RecipesOptions, argv, prog="mst recipes")
    if options is None:
        return 0
    if options.name:
        recipe = TASK_RECIPES.get(options.name) or find_recipe(options.name)
        return _show(recipe, json=options.json)
    if options.json:
        emit_json({"recipes": [_row(r) for r in RECIPES.values()], "tasks": [_row(r) for r in TASK_RECIPES.values()]})
        return 0
    emit(_list("recipe of mst pretrain", RECIPES), "", _list("recipe of a task (--recipe)", TASK_RECIPES))
    return 0


def _list(title: str, recipes: Mapping[str, Recipe] | Mapping[str, TaskRecipe]) -> Table:
    table = Table(title, "what", box=None, pad_edge=False)
    for recipe in recipes.values():
        table.add_row(recipe.name, recipe.summary)
    return table


def _show(recipe: Recipe | TaskRecipe, *, json: bool) -> int:
    if json:
        content = recipe.options if isinstance(recipe, TaskRecipe) else recipe.config.model_dump(mode="json")
        key = "options" if isinstance(recipe, TaskRecipe) else "config"
        emit_json(_row(recipe) | {key: content})
        return 0
    table = Table(box=None, show_header=False, pad_edge=False)
    for key, value in _row(recipe).items():
        table.add_row(key.replace("_", " "), value)
    if isinstance(recipe, TaskRecipe):
        complete = "\n".join(" ".join(words) for words in recipe.words().values())
    else:
        complete = dump_config(recipe.config).rstrip()
    emit(table, "", Text(complete))
    return 0


def _row(recipe: Recipe | TaskRecipe) -> dict[str, str]:
    """The header without the configuration."""
    return {field.name: getattr(recipe, field.name) for field in fields(recipe) if field.name not in LARGE}
