"""Named runs: each a complete configuration with the command, hardware, time and number that it promises."""

from __future__ import annotations

from pathlib import Path

from mst.config.keys import suggestion
from mst.config.load import load_config
from mst.config.schema import RunConfig
from mst.errors import ConfigError
from mst.paths import user_path
from mst.recipes import (
    cifar10,
    debug,
    detection,
    imagenet,
    imagenette,
    own_images,
    probes,
    quickstart,
    segmentation,
    supervised,
)
from mst.recipes.downstream import TaskRecipe
from mst.recipes.record import Recipe

RECIPES: dict[str, Recipe] = {
    recipe.name: recipe
    for family in (quickstart, own_images, debug, cifar10, imagenette, imagenet)
    for recipe in family.RECIPES
}
"""Every recipe of pre-training by name, in the order of the list."""

TASK_RECIPES: dict[str, TaskRecipe] = {
    recipe.name: recipe for family in (probes, segmentation, detection, supervised) for recipe in family.RECIPES
}
"""Every recipe of a downstream task by name: add a module with RECIPES here."""


def find_recipe(name: str) -> Recipe:
    """Return a recipe of pre-training.

    Raises:
        ConfigError: there is none of this name (the nearest is named), or it belongs to another command.
    """
    if name in RECIPES:
        return RECIPES[name]
    if name in TASK_RECIPES:
        raise ConfigError(f"{name} is a recipe of mst {TASK_RECIPES[name].task}, not of pre-training")
    raise ConfigError(f"unknown recipe {name}{suggestion(name, [*RECIPES, *TASK_RECIPES])} (all recipes: mst recipes)")


def find_task_recipe(name: str, task: str) -> TaskRecipe:
    """Return a recipe of `mst TASK`.

    Raises:
        ConfigError: there is none of this name (the nearest of the task is named), or it belongs to another command.
    """
    own = [recipe.name for recipe in TASK_RECIPES.values() if recipe.task == task]
    if name in own:
        return TASK_RECIPES[name]
    if name in RECIPES or name in TASK_RECIPES:
        what = f"--recipe {name} belongs to mst {TASK_RECIPES[name].task if name in TASK_RECIPES else 'pretrain'}"
    else:
        what = f"unknown recipe {name}"
    raise ConfigError(f"{what}{suggestion(name, own)} (all recipes: mst recipes)")


def base_config(recipe: str | Path) -> RunConfig:
    """Return the configuration of a recipe's name or of a JSON file, which changes the recipe it names, if any.

    Raises:
        ConfigError: neither a recipe nor a readable configuration.
    """
    if str(recipe) in RECIPES:
        return find_recipe(str(recipe)).config
    path = user_path(recipe)
    if isinstance(recipe, Path) or path.suffix == ".json" or path.is_file():
        return load_config(path, _recipe_of_file)
    return find_recipe(recipe).config


def _recipe_of_file(name: str) -> RunConfig:
    """Return a recipe's configuration; a file may also give its own run a name that is no recipe's."""
    return RECIPES[name].config if name in RECIPES else RunConfig()
