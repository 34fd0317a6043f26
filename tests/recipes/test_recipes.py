"""Every recipe keeps the promise of its header."""

from __future__ import annotations

import pytest

from mst.config.derive import derive
from mst.config.load import changed_keys, flatten
from mst.errors import ConfigError
from mst.recipes import RECIPES, base_config, find_recipe
from mst.recipes.record import Recipe
from mst.recipes.variants import TWINS as ALL_TWINS
from mst.recipes.variants import Variant

ALL = list(RECIPES.values())


@pytest.mark.parametrize("recipe", ALL, ids=lambda recipe: recipe.name)
def test_header_is_complete(recipe: Recipe) -> None:
    for text in (recipe.summary, recipe.paper_row, recipe.hardware, recipe.time, recipe.expected, recipe.note):
        assert text
        assert "\n" not in text
    assert recipe.command.startswith((f"mst pretrain {recipe.name} --data.train ", "mst quickstart --out "))
    assert " --out " in recipe.command
    assert recipe.config.recipe == recipe.name


@pytest.mark.parametrize("recipe", ALL, ids=lambda recipe: recipe.name)
def test_plan_can_be_derived(recipe: Recipe) -> None:
    assert derive(recipe.config, 100_000).total_steps > 0


TWINS = [(name, variant) for name in RECIPES for variant in ALL_TWINS if name.endswith(f"-{variant.name}")]


@pytest.mark.parametrize(("name", "variant"), TWINS, ids=[name for name, _ in TWINS])
def test_twins_differ_in_what_they_are_named_for(name: str, variant: Variant) -> None:
    twin, own = RECIPES[name].config, RECIPES[name.removesuffix(f"-{variant.name}")].config
    assert changed_keys(own, twin) == list(variant.changes)
    assert {key: flatten(twin)[key] for key in variant.changes} == variant.changes


def test_both_backbones_of_the_paper_have_all_twins() -> None:
    for base in ("deit-small-in1k-100ep", "swin-tiny-in1k-100ep"):
        assert {f"{base}-{end}" for end in ("dino", "random", "high", "hint", "block", "bn")} <= RECIPES.keys()
    assert {"deit-small-in1k-300ep-dino", "swin-tiny-in1k-300ep-dino", "swin-tiny-imagenette128"} <= RECIPES.keys()


@pytest.mark.parametrize("images", [128, 1_000, 30_000, 1_281_167])
def test_own_images_are_sized_by_their_number(images: int) -> None:
    plan = derive(RECIPES["own-images"].config, images)
    assert plan.total_steps == 100 * (images // 128)
    assert plan.warmup_steps <= plan.total_steps // 10
    assert plan.freeze_last_layer_steps <= plan.total_steps // 10
    assert plan.prototypes == {128: 1024, 1_000: 1024, 30_000: 2048, 1_281_167: 65536}[images]
    assert 0.8 <= plan.teacher_momentum < 1
    assert plan.lr == pytest.approx(2.5e-4)


def test_unknown_recipe_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match="unknown recipe dbug; did you mean debug"):
        find_recipe("dbug")


def test_a_missing_file_is_named() -> None:
    with pytest.raises(ConfigError, match=r"mine\.json does not exist"):
        base_config("mine.json")
