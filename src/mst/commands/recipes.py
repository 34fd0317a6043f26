"""`mst recipes`: list the recipes, or print one complete."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Annotated

import tyro
from rich.table import Table
from rich.text import Text

from mst.commands.arguments import parse_arguments, show_help, wants_help
from mst.commands.output import emit, emit_json
from mst.config.load import dump_config
from mst.errors import UsageError
from mst.recipes import RECIPES, find_recipe
from mst.recipes.record import Recipe


@dataclass(frozen=True)
class RecipesOptions:
    """List the recipes, or print one complete."""

    name: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="NAME")] = ""
    """The recipe to print; none = list all."""
    json: bool = False
    """One JSON object on stdout."""


def run(argv: Sequence[str]) -> int:
    """Run the command; return the exit status."""
    if wants_help(argv):
        return show_help(RecipesOptions, "mst recipes")
    options, words = parse_arguments(argv, RecipesOptions(), positional="name")
    if words:
        raise UsageError("mst recipes takes a name and --json; settings belong to mst plan and mst pretrain")
    if options.name:
        return _show(find_recipe(options.name), json=options.json)
    if options.json:
        emit_json({"recipes": [_row(recipe) for recipe in RECIPES.values()]})
        return 0
    table = Table("recipe", "what", box=None, pad_edge=False)
    for recipe in RECIPES.values():
        table.add_row(recipe.name, recipe.summary)
    emit(table)
    return 0


def _show(recipe: Recipe, *, json: bool) -> int:
    if json:
        emit_json(_row(recipe) | {"config": recipe.config.model_dump(mode="json")})
        return 0
    table = Table(box=None, show_header=False, pad_edge=False)
    for key, value in _row(recipe).items():
        table.add_row(key.replace("_", " "), value)
    emit(table, "", Text(dump_config(recipe.config).rstrip()))
    return 0


def _row(recipe: Recipe) -> dict[str, str]:
    """The header without the configuration."""
    return {key: value for key, value in asdict(recipe).items() if key != "config"}
