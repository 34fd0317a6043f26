"""Named runs: each a complete configuration with the command, hardware, time and number that it promises."""

from __future__ import annotations

from pathlib import Path

from mst.config.keys import suggestion
from mst.config.load import load_config
from mst.config.schema import RunConfig
from mst.errors import ConfigError
from mst.recipes import cifar10, debug, imagenet, imagenette, own_images, quickstart
from mst.recipes.record import Recipe

RECIPES: dict[str, Recipe] = {
    recipe.name: recipe
    for family in (quickstart, own_images, debug, cifar10, imagenette, imagenet)
    for recipe in family.RECIPES
}
"""Every recipe by name, in the order of the list."""


def find_recipe(name: str) -> Recipe:
    """Return a recipe.

    Raises:
        ConfigError: there is none of this name; the nearest is named.
    """
    if name in RECIPES:
        return RECIPES[name]
    raise ConfigError(f"unknown recipe {name}{suggestion(name, RECIPES)} (all recipes: mst recipes)")


def base_config(recipe: str) -> RunConfig:
    """Return the configuration of a recipe's name or of a JSON file.

    Raises:
        ConfigError: neither a recipe nor a readable configuration.
    """
    if recipe not in RECIPES and (recipe.endswith(".json") or Path(recipe).is_file()):
        return load_config(Path(recipe))
    return find_recipe(recipe).config
