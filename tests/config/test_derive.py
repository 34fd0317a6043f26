"""Derived values against the published recipe, their limits, and the contradictions that are refused."""

from __future__ import annotations

from itertools import product

import pytest

from mst.config.derive import IMAGENET_IMAGES, Measured, derive, needs_measuring
from mst.config.load import override
from mst.config.schema import RunConfig, RunPlan
from mst.errors import ConfigError

DERIVED = [
    "steps_per_epoch",
    "total_steps",
    "lr",
    "warmup_steps",
    "prototypes",
    "teacher_temp",
    "teacher_temp_start",
    "teacher_temp_warmup_steps",
    "teacher_momentum",
    "freeze_last_layer_steps",
]


def plan(images: int = 10_000, **settings: object) -> RunPlan:
    keys = {key.replace("__", "."): value for key, value in settings.items()}
    return derive(override(RunConfig(), keys), images)


def test_imagenet_gives_dinos_recipe() -> None:
    dino = plan(IMAGENET_IMAGES, train__batch_size=1024, train__epochs=100)
    assert dino.steps_per_epoch == 1251
    assert dino.total_steps == 125_100
    assert dino.lr == pytest.approx(5e-4 * 4)
    assert dino.prototypes == 65_536
    assert dino.teacher_momentum == pytest.approx(0.996)
    assert dino.warmup_steps == 10 * 1251
    assert dino.freeze_last_layer_steps == 1251
    assert (dino.teacher_temp_start, dino.teacher_temp) == (0.04, 0.07)
    assert dino.teacher_temp_warmup_steps == 30 * 1251


@pytest.mark.parametrize(("images", "prototypes"), [(8, 1024), (10_000, 1024), (50_000, 2048), (10**8, 65_536)])
def test_prototypes_follow_the_data_set(images: int, prototypes: int) -> None:
    assert plan(images, train__batch_size=8).prototypes == prototypes


def test_momentum_follows_the_batch_in_a_long_run() -> None:
    small = plan(IMAGENET_IMAGES, train__batch_size=256, train__epochs=100)
    assert small.teacher_momentum == pytest.approx(0.996**0.25)


def test_momentum_follows_the_length_of_a_short_run() -> None:
    short = plan(10_000, train__batch_size=100, train__epochs=10)  # 1000 steps: 2 % of them
    assert short.teacher_momentum == pytest.approx(1 - 1 / 20)


@pytest.mark.parametrize(("images", "batch", "epochs"), list(product([8, 100, 5_000], [1, 8], [0.1, 1, 7.5, 300])))
def test_plans_are_sound(images: int, batch: int, epochs: float) -> None:
    short = plan(images, train__batch_size=batch, train__epochs=epochs)
    assert short.steps_per_epoch == images // batch
    assert short.total_steps >= 1
    assert short.warmup_steps <= 0.1 * short.total_steps + 1
    assert short.freeze_last_layer_steps <= 0.03 * short.total_steps + 1
    assert 0 <= short.teacher_temp_warmup_steps <= short.total_steps
    assert 0.9 <= short.teacher_momentum < 1
    assert set(DERIVED) <= set(short.reasons)
    assert all(reason and "\n" not in reason for reason in short.reasons.values())


def test_what_is_set_is_kept() -> None:
    fixed = plan(
        optimizer__lr=0.1,
        model__prototypes=7,
        objective__teacher_temp=0.02,
        objective__teacher_momentum=0.5,
        schedule__warmup_epochs=0,
        schedule__freeze_last_layer_epochs=2,
        train__batch_size=100,
    )
    assert (fixed.lr, fixed.prototypes, fixed.teacher_momentum) == (0.1, 7, 0.5)
    assert (fixed.teacher_temp_start, fixed.teacher_temp, fixed.teacher_temp_warmup_steps) == (0.02, 0.02, 0)
    assert (fixed.warmup_steps, fixed.freeze_last_layer_steps) == (0, 200)
    assert fixed.reasons["lr"] == "set by --optimizer.lr"


def test_batch_is_shared() -> None:
    config = override(RunConfig(), {"train.batch_size": 48, "train.accumulate": 3})
    assert derive(config, 1000, world_size=4).batch_size_per_pass == 4
    assert derive(config, 1000, world_size=5).batch_size_per_pass == 4  # the largest of 15 parts
    with pytest.raises(ConfigError, match=r"too small for 3 microbatches on 17 processes: use at least 51"):
        derive(config, 1000, world_size=17)


def test_statistics_are_measured_where_imagenets_do_not_fit() -> None:
    measured = Measured((0.1,) * 5, (0.2,) * 5, 256)

    def statistics(measured: Measured | None, **settings: object) -> tuple[tuple[float, ...], tuple[float, ...]]:
        config = override(RunConfig(), {f"{key.replace('__', '.')}": value for key, value in settings.items()})
        found = derive(config, 10_000, measured=measured)
        return found.mean, found.std

    assert statistics(measured, data__channels=5) == (measured.mean, measured.std)
    assert statistics(None, data__channels=1) == ((0.449,), (0.226,))
    assert statistics(measured, data__channels=5, views__mean=["auto"], views__std=(0.5,) * 5) == (
        measured.mean,
        (0.5,) * 5,
    )
    assert plan(data__channels=1, views__mean=(0.1,), views__std=(0.2,)).mean == (0.1,)
    assert plan().mean == (0.485, 0.456, 0.406)
    wanted = [
        needs_measuring(override(RunConfig(), changes))
        for changes in ({}, {"data.channels": 1}, {"views.std": "auto"}, {"data.channels": 1, "views.mean": (0.1,)})
    ]
    assert wanted == [False, True, True, False]


@pytest.mark.parametrize(
    ("settings", "part"),
    [
        ({"train.batch_size": 200}, "larger than the data set of 100 images: use --train.batch-size 100 or less"),
        ({"train.batch_size": 3, "train.accumulate": 4}, "too small for 4 microbatches: use at least 4"),
        ({"train.batch_size": 200, "train.accumulate": 200}, "lower --train.accumulate"),
        ({"views.global_scale": (0.9, 0.4)}, "--views.global-scale 0.9 0.4"),
        ({"views.local_scale": (0.0, 0.4)}, "--views.local-scale 0 0.4"),
        ({"views.blur_sigma": (2.0, 1.0)}, "--views.blur-sigma"),
        ({"views.local_blur_sigma": (2.0, 1.0)}, "--views.local-blur-sigma 2 1"),
        ({"views.mean": (0.5,)}, "each needs 3"),
        ({"optimizer.lr": 1e-9}, "--optimizer.min-lr"),
        ({"optimizer.betas": (0.9, 1.0)}, "--optimizer.betas"),
        ({"objective.distillation_weight": 0, "objective.restoration_weight": 0}, "nothing to learn"),
        ({"objective.teacher_momentum": 0.9, "objective.teacher_momentum_end": 0.5}, "only rises"),
        ({"monitor.guard": "stop"}, "name a folder with --monitor.knn-data"),
    ],
)
def test_contradictions(settings: dict[str, object], part: str) -> None:
    with pytest.raises(ConfigError) as caught:
        derive(override(RunConfig(), {"train.batch_size": 10, **settings}), 100)
    assert part in str(caught.value)


def test_trained_weights_get_a_low_rate_and_a_head_only_warm_up() -> None:
    fresh, trained = plan(), plan(model__init_from="timm:deit_small_patch16_224")
    assert trained.lr == pytest.approx(fresh.lr / 10)
    assert "trained already" in trained.reasons["lr"]
    assert (fresh.freeze_backbone_steps, trained.freeze_backbone_steps) == (0, trained.steps_per_epoch)
    assert trained.freeze_backbone_steps <= 0.05 * trained.total_steps
    chosen = plan(model__init_from="x", optimizer__lr=1e-3, schedule__freeze_backbone_epochs=2.0)
    assert (chosen.lr, chosen.freeze_backbone_steps) == (1e-3, 2 * chosen.steps_per_epoch)
    assert plan(model__init_from="x", train__batch_size=1).lr >= 1e-6
