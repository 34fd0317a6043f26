"""Augmentations are repeatable, leave global generators alone, and mix images as they mix targets."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from mst.errors import UsageError
from mst.finetune.augment import RandAugment, cutmix_box, erased, mixed
from mst.runtime.seeding import generator

IMAGES = torch.arange(4.0).view(4, 1, 1, 1).expand(4, 2, 12, 20)


def test_randaugment_repeats_and_restores_the_generators() -> None:
    image = torch.randint(256, (3, 16, 24), generator=generator(0), dtype=torch.uint8)
    augment = RandAugment("rand-m9-mstd0.5-inc1", size=(16, 24), mean=(0.5, 0.5, 0.5))
    before, numbers = random.getstate(), np.random.get_state()[1].tolist()
    views = [augment(image, seed) for seed in range(8)]
    assert random.getstate() == before
    assert np.random.get_state()[1].tolist() == numbers
    assert all(view.shape == image.shape and view.dtype == torch.uint8 for view in views)
    assert all(torch.equal(view, augment(image, seed)) for seed, view in enumerate(views))
    assert len({view.numpy().tobytes() for view in views}) > 4
    strongest = RandAugment("rand-m10-n8-inc1", size=(16, 24), mean=(0.5, 0.5, 0.5))
    for seed in range(40):  # some of them posterize to the last bit
        strongest(image, seed)
    with pytest.raises(UsageError, match="--randaugment augmix-m5"):
        RandAugment("augmix-m5", size=(16, 24), mean=(0.5,) * 3)


def test_erasing_fills_a_rectangle_with_noise() -> None:
    draw = np.random.default_rng(0)
    assert torch.equal(erased(IMAGES.clone(), 0.0, draw), IMAGES)
    with torch.random.fork_rng():
        changed = erased(IMAGES.clone(), 0.999, draw) != IMAGES
    assert changed.flatten(1).any(1).all()
    for places in changed.all(1):
        rows, columns = places.any(1), places.any(0)
        assert torch.equal(places, rows[:, None] & columns[None, :])
        assert 0.01 < places.float().mean() < 0.4


@pytest.mark.parametrize(("mixup", "cutmix"), [(0.8, 0.0), (0.0, 1.0), (0.8, 1.0), (0.0, 0.0)])
def test_targets_say_what_the_images_show(mixup: float, cutmix: float) -> None:
    kinds = set()
    for seed in range(20):
        draw = np.random.default_rng(seed)
        images, targets = mixed(IMAGES, torch.arange(4), 4, mixup=mixup, cutmix=cutmix, smoothing=0.1, draw=draw)
        torch.testing.assert_close(targets.sum(1), torch.ones(4))
        shown = (targets - 0.025) / 0.9  # without smoothing: the share of each image
        torch.testing.assert_close(images.mean((1, 2, 3)), shown @ torch.arange(4.0), atol=1e-5, rtol=1e-5)
        kinds.add("cut" if (images == IMAGES).any() and not torch.equal(images, IMAGES) else "mix")
    assert torch.equal(IMAGES[:, 0, 0, 0], torch.arange(4.0))
    assert ("cut" in kinds) == (cutmix > 0)


def test_boxes_stay_inside_and_have_the_area() -> None:
    draw, areas = np.random.default_rng(1), []
    for _ in range(200):
        top, bottom, left, right = cutmix_box((12, 20), 0.75, draw)
        assert 0 <= top <= bottom <= 12
        assert 0 <= left <= right <= 20
        areas.append((bottom - top) * (right - left))
    assert max(areas) == 6 * 10  # a quarter of the area, unless the border cuts it
    assert cutmix_box((12, 20), 1.0, draw)[1] - cutmix_box((12, 20), 1.0, draw)[0] <= 12
