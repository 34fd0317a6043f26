"""Choices for images, device and time: sound for any, kept where the user decides, never smaller with more time."""

from __future__ import annotations

from itertools import pairwise, product

import pytest

from mst.config.choosing import MOST_EPOCHS, choose, lengthen
from mst.config.derive import derive
from mst.config.facts import DeviceFacts, SetFacts, Shape
from mst.config.ladder import LADDER, SIDES, affordable, local_side, patch_for, rung, shape_for
from mst.config.load import as_chosen, flatten, load_config, override, with_minutes
from mst.config.schema import Choice, RunConfig
from mst.errors import UsageError
from mst.recipes import base_config

CPU = DeviceFacts("cpu", 1.5e11, 16 * 2**30, threads=2)
GPU = DeviceFacts("cuda", 4e13, 40 * 2**30)
COUNTS = (1, 2, 20, 400, 2_624, 10_000, 1_000_000)
SIZES = ((8, 8), (32, 32), (48, 48), (300, 300), (360, 480), (200, 900), (3_000, 4_000))


def own(minutes: float | None = None, **settings: object) -> RunConfig:
    keys = {key.replace("__", "."): value for key, value in settings.items()}
    return with_minutes(override(base_config("own-images"), {"data.train": "photos", **keys}), minutes)


def decided(config: RunConfig, images: SetFacts, device: DeviceFacts, **options: int) -> RunConfig:
    """Choose as a run does, at the speed that the device's operations give."""
    chosen = choose(config, images, device, **options)
    return lengthen(chosen, images, device, images_per_second=speed(chosen, device))


def speed(config: RunConfig, device: DeviceFacts) -> float:
    return device.flops_per_second / cost(config)


def cost(config: RunConfig) -> float:
    model, views, patch = config.model, config.views, config.model.patch_size or 16
    sides = [size if isinstance(size, int) else min(size) for size in (views.global_size, views.local_size)]
    tokens = [(side // patch) ** 2 for side in sides]
    return Shape(model.embed_dim or 384, model.depth or 12, *tokens, local_crops=views.local_crops).step_flops


def facts(count: int, size: tuple[int, int], kind: str = "colour") -> SetFacts:
    channels = {"colour": 3, "grey": 3, "six": 6, "one": 1}[kind]
    return SetFacts(count, size, channels=channels, grey=kind in {"grey", "one"}, detail=min(*size, 512))


CASES = list(product(COUNTS, SIZES, ("colour", "grey", "six"), (CPU, GPU)))


@pytest.mark.parametrize("minutes", [15.0, None])
def test_choices_are_sound_for_any_images_and_device(minutes: float | None) -> None:
    for count, size, kind, device in CASES:
        start = own(minutes, data__channels=6) if kind == "six" else own(minutes)
        try:
            config = decided(start, facts(count, size, kind), device)
        except UsageError:
            assert count == max(COUNTS)
            continue
        plan = derive(config, count)  # a contradiction is refused here
        patch = config.model.patch_size
        assert patch
        assert all(side % patch == 0 for side in (*plan.global_size, *plan.local_size))
        assert plan.local_size[0] < plan.global_size[0] <= max(min(size), SIDES[0])
        assert 1 <= config.train.batch_size <= max(1, count // 2)
        assert config.objective.teacher_momentum_end >= plan.teacher_momentum
        assert 1 <= config.train.epochs <= MOST_EPOCHS
        assert RunConfig.model_validate_json(config.model_dump_json()) == config
        assert config.choice
        assert set(config.choice.reasons) <= set(flatten(config))
        assert all(reason and "\n" not in reason for reason in config.choice.reasons.values())


def test_the_usual_cases() -> None:
    """What users on both ends of the ladder get."""
    cells = decided(own(15), facts(2_624, (300, 300), "grey"), CPU)
    assert (cells.data.channels, cells.model.embed_dim, cells.model.patch_size) == (1, 128, 8)
    assert cells.views.global_size in {64, 96}
    assert (cells.views.solarize, cells.views.brightness < 0.2) == (0.0, True)
    assert cells.choice
    assert "300x300 px, 300 px keep 90 % of their fine structure" in cells.choice.reasons["views.global_size"]
    small = decided(own(15), facts(10_000, (32, 32)), CPU)
    assert (small.views.global_size, small.views.local_size, small.model.patch_size) == (32, 16, 4)
    assert cells.objective.center_momentum == small.objective.center_momentum == 0.0
    many = decided(own(24 * 60), facts(1_000_000, (400, 500)), GPU)
    assert many.objective.center_momentum == 0.9
    assert (many.model.backbone, many.views.global_size, many.model.patch_size) == ("deit_small_patch16_224", 224, 16)
    assert (many.train.batch_size, many.model.head_norm) == (256, "none")


def test_the_choice_depends_on_nothing_else() -> None:
    images = facts(2_624, (300, 300))
    assert decided(own(15), images, CPU) == decided(own(15), images, CPU)


@pytest.mark.parametrize("device", [CPU, GPU], ids=["cpu", "gpu"])
@pytest.mark.parametrize("count", [400, 2_624, 10_000, 1_000_000])
def test_more_time_never_means_less(count: int, device: DeviceFacts) -> None:
    images = facts(count, (300, 400))
    done: list[tuple[float, int, int]] = []
    for minutes in (1, 2, 5, 15, 30, 60, 240, 1_000, 5_000, 20_000):
        try:
            config = decided(own(minutes), images, device)
        except UsageError:
            assert not done, (minutes, done)
            continue
        side = config.views.global_size
        assert isinstance(side, int)
        capped = 2e18 if config.train.epochs >= MOST_EPOCHS else config.train.epochs * count * cost(config)
        done.append((capped * 1.001, side, LADDER.index(rung(config.model.embed_dim, config.model.depth))))
    for before, after in pairwise(done):
        assert all(more >= 0.98 * less for less, more in zip(before, after, strict=True))


GIVEN = {
    "model.embed_dim": 96,
    "model.depth": 2,
    "model.patch_size": 16,
    "views.global_size": 160,
    "views.local_size": 32,
    "views.local_crops": 2,
    "views.brightness": 0.7,
    "model.prototypes": 77,
    "train.batch_size": 10,
    "train.epochs": 3.0,
    "optimizer.lr": 1e-5,
    "objective.teacher_momentum": 0.999,
    "objective.teacher_momentum_end": 0.9995,
    "objective.teacher_temp": 0.05,
    "data.channels": 3,
    "monitor.every_steps": 7,
}


@pytest.mark.parametrize("key", [*GIVEN, None])
def test_what_the_user_sets_is_kept_and_the_rest_adapts(key: str | None) -> None:
    given = {key: GIVEN[key]} if key else GIVEN
    config = decided(override(own(15), given), facts(2_624, (300, 300), "grey"), CPU)
    values = flatten(config)
    assert {name: values[name] for name in given} == given
    assert config.choice
    assert not set(given) & set(config.choice.reasons)
    assert set(given) <= set(config.choice.given)
    derive(config, 2_624)


@pytest.mark.parametrize(
    "key", ["model.embed_dim", "model.patch_size", "model.prototypes", "objective.teacher_momentum"]
)
def test_none_is_taken_as_given(key: str) -> None:
    config = decided(override(own(15), {key: ["none"]}), facts(2_624, (300, 300)), CPU)
    assert flatten(config)[key] is None
    derive(config, 2_624)


def test_a_backbone_of_the_users_keeps_its_own_sizes() -> None:
    swin = decided(own(15, model__backbone="swin_tiny_patch4_window7_224"), facts(2_624, (300, 300)), CPU, patch=32)
    assert (swin.model.embed_dim, swin.model.depth, swin.model.patch_size) == (None, None, None)
    assert swin.views.global_size in {64, 96, 128}
    assert swin.views.local_size == 32


def test_too_few_minutes_say_what_is_possible() -> None:
    images, much = (
        facts(10_000, (300, 300)),
        "--minutes 1 is too short for one pass over 10,000 images to learn from at 20 images/s",
    )
    chosen = choose(own(1), images, CPU)
    with pytest.raises(UsageError, match=much) as said:
        lengthen(chosen, images, CPU, images_per_second=20.0)
    assert "--minutes 9.3 or more" in str(said.value)
    assert "--data.limit 972" in str(said.value)


def test_near_duplicates_count_for_less() -> None:
    assert SetFacts(1_000, (32, 32), alike=1.0).different == 250
    film, photos = (SetFacts(3_000, (64, 64), alike=alike) for alike in (1.0, 0.0))
    prototypes = [decided(own(15), images, CPU).model.prototypes for images in (film, photos)]
    assert prototypes == [256, 1024]


def test_several_processes_fill_their_batch() -> None:
    device = DeviceFacts("cpu", 1.5e11, 2**34, processes=4)
    assert decided(own(15), facts(8, (32, 32)), device).train.batch_size >= 4


def test_a_full_gpu_takes_the_batch_in_parts() -> None:
    small = DeviceFacts("cuda", 4e13, 4 * 2**30)
    config = decided(own(24 * 60), facts(1_000_000, (400, 500)), small)
    assert config.train.accumulate > 1


def test_of_other_recipes_the_epochs_alone_are_chosen() -> None:
    recipe = override(base_config("vit-tiny-cifar10"), {"data.train": "photos"})
    config = decided(with_minutes(recipe, 5), facts(10_000, (32, 32)), CPU)
    assert config.choice
    assert list(config.choice.reasons) == ["train.epochs"]
    assert config.model_copy(update={"choice": None, "train": recipe.train}) == recipe
    assert config.train.epochs != recipe.train.epochs


def test_a_stored_choice_is_taken_again() -> None:
    images = facts(2_624, (300, 300))
    stored = decided(own(15), images, CPU)
    stored = stored.model_copy(update={"choice": stored.choice.model_copy(update={"facts": {"images": {}}})})  # type: ignore[union-attr]
    again = as_chosen(base_config("own-images"), stored)
    assert override(again, {"data.train": "photos"}) == stored


def test_a_key_that_is_set_later_is_no_choice_any_more() -> None:
    stored = decided(own(15), facts(2_624, (300, 300)), CPU)
    changed = override(stored, {"optimizer.lr": 1e-5})
    assert changed.choice
    assert "optimizer.lr" not in changed.choice.reasons
    assert derive(changed, 2_624).reasons["lr"] == "set by --optimizer.lr"
    assert stored.choice
    assert derive(stored, 2_624).reasons["lr"] == stored.choice.reasons["optimizer.lr"]


def test_a_file_that_names_the_recipe_gives_what_it_says(tmp_path) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path / "mine.json"
    path.write_text('{"recipe": "own-images", "train": {"batch_size": 128}, "optimizer.lr": 1e-4}', encoding="utf-8")
    config = load_config(path, base_config)
    assert config.choice
    assert set(config.choice.given) == {"train.batch_size", "optimizer.lr"}


@pytest.mark.parametrize(
    ("settings", "mean"), [({"data.channels": 1}, "auto"), ({"data.channels": 3}, (0.491, 0.482, 0.447))]
)
def test_statistics_of_a_recipe_give_way_to_other_channels(settings: dict[str, object], mean: object) -> None:
    for value in (settings, {key: [str(number)] for key, number in settings.items()}):
        assert override(base_config("vit-tiny-cifar10"), value).views.mean == mean


def test_statistics_that_the_user_set_are_checked() -> None:
    kept = override(base_config("vit-tiny-cifar10"), {"data.channels": 1, "views.mean": (0.1, 0.2, 0.3)})
    assert kept.views.mean == (0.1, 0.2, 0.3)


@pytest.mark.parametrize("side", SIDES)
def test_crops_are_whole_patches(side: int) -> None:
    patch = patch_for(side)
    assert side % patch == 0
    assert local_side(side, patch) % patch == 0
    assert 36 <= (side // patch) ** 2 <= 256


def test_larger_crops_come_before_larger_networks() -> None:
    images = facts(10_000, (300, 300))
    found = [affordable(images, 10.0**power) for power in range(9, 22)]
    sides = [each.side for each in found]
    assert sides == sorted(sides)
    assert found[0].network is LADDER[0]
    assert found[-1].network is LADDER[-1]


@pytest.mark.parametrize(("seen", "side"), [(24_000, 64), (55_000, 96)])
def test_a_small_set_gets_crops_that_are_seen_often_enough(seen: int, side: int) -> None:
    cost = shape_for(LADDER[0], 96, patch_for(96), 4).step_flops
    assert affordable(facts(321, (360, 480)), seen * cost).side == side


def test_the_schema_keeps_the_choice_with_the_run() -> None:
    assert RunConfig().choice is None
    assert Choice(minutes=3).facts == {}
