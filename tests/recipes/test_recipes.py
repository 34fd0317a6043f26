"""Every recipe keeps the promise of its header."""

from __future__ import annotations

import pytest

from mst.config.derive import derive
from mst.config.load import changed_keys
from mst.errors import ConfigError
from mst.recipes import RECIPES, base_config, find_recipe
from mst.recipes.record import Recipe

ALL = list(RECIPES.values())


@pytest.mark.parametrize("recipe", ALL, ids=lambda recipe: recipe.name)
def test_header_is_complete(recipe: Recipe) -> None:
    for text in (recipe.summary, recipe.paper_row, recipe.hardware, recipe.time, recipe.expected, recipe.note):
        assert text
        assert "\n" not in text
    assert recipe.command.startswith(f"mst pretrain {recipe.name} --data.train ")
    assert " --out " in recipe.command
    assert recipe.config.recipe == recipe.name


@pytest.mark.parametrize("recipe", ALL, ids=lambda recipe: recipe.name)
def test_plan_can_be_derived(recipe: Recipe) -> None:
    assert derive(recipe.config, 100_000).total_steps > 0


@pytest.mark.parametrize("name", [name for name in RECIPES if name.endswith("-dino")])
def test_twins_differ_in_the_objective_only(name: str) -> None:
    twin, own = RECIPES[name].config, RECIPES[name.removesuffix("-dino")].config
    assert changed_keys(own, twin) == ["objective.strategy", "objective.restoration_weight"]
    assert (twin.objective.strategy, twin.objective.restoration_weight) == ("none", 0.0)


def test_unknown_recipe_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match="unknown recipe dbug; did you mean debug"):
        find_recipe("dbug")


def test_a_missing_file_is_named() -> None:
    with pytest.raises(ConfigError, match=r"mine\.json does not exist"):
        base_config("mine.json")
