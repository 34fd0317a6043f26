"""What the contenders of `quality_per_hour.py` are told: mst a recipe, lightly-train what its own settings allow.

What lightly-train 0.18 has no setting for, so what still differs in `lightly-as-mst` from `mst-dino`:

- its gradients are clipped by their norm over all tensors (3.0), the recipe's tensor by tensor (3.0);
- student and teacher begin with one backbone, the recipe's, but with heads that are drawn one after the other; those
  of the recipe are the same;
- BatchNorm in the student's head looks at global crops and local crops apart, the recipe's at all of them together;
- the teacher moves before a step, not after it, so what is saved has seen one step less;
- crops are cut, resized (area), jittered and blurred by albumentations and OpenCV on bytes, the recipe's by this
  package in float32; a file is decoded anew each time, here small images are kept in memory;
- on a machine of two cores a process beside the training reads and augments, on the same core.
"""

from __future__ import annotations

import math
from typing import Any

import mst
from mst.config.schema import RunConfig
from mst.model.backbone import BackboneSpec
from mst.model.build import any_size_arguments, backbone_spec, timm_arguments

RECIPES = {"mst": "vit-tiny-cifar10", "mst-dino": "vit-tiny-cifar10-dino"}
LIGHTLY = ("lightly", "lightly-adamw", "lightly-as-mst")
CONTENDERS = (*RECIPES, *LIGHTLY)
SIDE = 224
"""Pixels of the crops that the recipe's blur is stated for."""
Values = dict[str, Any]


def recipe_config(contender: str, images: str, *, steps: int, count: int, seed: int) -> RunConfig:
    """Return the recipe of a contender, or (for lightly-train's) the one to take values from, of so many steps.

    Args:
        contender: its name.
        images: folder to train on.
        steps: of the whole run.
        count: images in the folder.
        seed: of the run.
    """
    return mst.load_recipe(RECIPES.get(contender, RECIPES["mst-dino"]), overrides(images, steps, count, seed))


def overrides(images: str, steps: int, count: int, seed: int) -> Values:
    """Return what is set beside the recipe: images, length, seed, one thread."""
    batch = mst.load_recipe(RECIPES["mst"]).train.batch_size
    return {
        "data.train": [images],
        "train.epochs": steps / (count // batch),
        "runtime.seed": seed,
        "runtime.threads": 1,
    }


def spec_of(config: RunConfig) -> BackboneSpec:
    """Return the network of a recipe."""
    size = config.views.global_size
    square = size if isinstance(size, tuple) else (size, size)
    return backbone_spec(config.model, image_size=square, channels=config.data.channels)


def settings_of(contender: str, images: str, start: str, *, steps: int, count: int, seed: int) -> Values:
    """Return what `quality_workers.py` needs to train a contender, but for its folder and its times.

    Args:
        contender: its name.
        images: folder to train on.
        start: file of the recipe's first weights.
        steps: of the whole run.
        count: images in the folder.
        seed: of the run.
    """
    config = recipe_config(contender, images, steps=steps, count=count, seed=seed)
    known: Values = {"seed": seed, "batch": config.train.batch_size}
    if contender in RECIPES:
        return {
            **known,
            "trainer": "mst",
            "recipe": RECIPES[contender],
            "overrides": overrides(images, steps, count, seed),
        }
    spec, alike = spec_of(config), contender == "lightly-as-mst"
    own: Values = as_recipe(config) if alike else {"optim": "adamw"} if contender == "lightly-adamw" else {}
    return {
        **known,
        "trainer": "lightly",
        "backbone": spec.name,
        "backbone_arguments": {**timm_arguments(spec), **any_size_arguments(spec.name)},
        "start": start if alike else None,
        "cls": alike,
        "pretrain": {
            **own,
            "method": "dino",
            "data": images,
            "batch_size": config.train.batch_size,
            "epochs": math.ceil(steps / (count // config.train.batch_size)),
            "trainer_args": {"max_steps": steps},
            "accelerator": "cpu",
            "transform_args": with_crops(config, own.get("transform_args", {})),
        },
    }


def with_crops(config: RunConfig, transform: Values) -> Values:
    """Return settings of the views with the recipe's sizes and number of crops."""
    size, local = config.views.global_size, config.views.local_size
    small = {"num_views": config.views.local_crops, "view_size": [local, local], **transform.get("local_view", {})}
    return {"image_size": [size, size], **transform, "local_view": small}


def as_recipe(config: RunConfig) -> Values:
    """Return lightly-train's settings with a recipe's values, as far as they go."""
    planned = mst.plan(config)
    plan, model, objective, optimizer = planned.plan, config.model, config.objective, config.optimizer
    return {
        "precision": "bf16-mixed" if planned.precision.startswith("bfloat16") else "32-true",
        "optim": "adamw",
        "optim_args": {
            "lr": optimizer.base_lr,  # at 256 images; both scale it linearly
            "betas": list(optimizer.betas),
            "weight_decay": optimizer.weight_decay,
        },
        "method_args": {
            "hidden_dim": model.head_hidden,
            "bottleneck_dim": model.head_bottleneck,
            "output_dim": plan.prototypes,
            "batch_norm": model.head_norm == "batch",
            "norm_last_layer": model.norm_last_layer,
            "student_freeze_last_layer_steps": plan.freeze_last_layer_steps,
            "teacher_temp": plan.teacher_temp,
            "warmup_teacher_temp": plan.teacher_temp_start,
            "warmup_teacher_temp_steps": plan.teacher_temp_warmup_steps,
            "student_temp": objective.student_temp,
            "center_momentum": objective.center_momentum,
            "momentum_start": plan.teacher_momentum,
            "momentum_end": objective.teacher_momentum_end,
            "weight_decay_start": optimizer.weight_decay,
            "weight_decay_end": optimizer.weight_decay_end,
            "warmup_steps": plan.warmup_steps,
            "warmup_max_steps_fraction": 1.0,
        },
        "transform_args": views_of(config),
    }


def views_of(config: RunConfig) -> Values:
    """Return lightly-train's settings of colours and crops with a recipe's values."""
    views = config.views
    assert isinstance(views.global_size, int)
    assert isinstance(views.mean, tuple)
    assert isinstance(views.std, tuple)
    sigmas = [sigma * views.global_size / SIDE for sigma in views.blur_sigma]
    first, others, local = ({"prob": share, "sigmas": sigmas} if share else None for share in views.blur)
    return {
        "random_resize": {"min_scale": views.global_scale[0], "max_scale": views.global_scale[1]},
        "random_flip": {"horizontal_prob": views.flip},
        "color_jitter": {
            "prob": views.jitter,
            "strength": 1.0,
            "brightness": views.brightness,
            "contrast": views.contrast,
            "saturation": views.saturation,
            "hue": views.hue,
        },
        "random_gray_scale": views.grey,
        "normalize": {"mean": list(views.mean), "std": list(views.std)},
        "gaussian_blur": first,
        "global_view_1": {"gaussian_blur": others, "solarize": {"prob": views.solarize}},
        "local_view": {
            "random_resize": {"min_scale": views.local_scale[0], "max_scale": views.local_scale[1]},
            "gaussian_blur": local,
        },
    }
