"""Augmentation: image and mask stay together, sizes and padding are right, draws depend on the generator alone."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from evaluate.segmenters import random_image
from mst.errors import UsageError
from mst.evaluate.segmentation.augment import Augmentation, augmented, distorted
from mst.evaluate.segmentation.data import NO_CLASS
from mst.evaluate.segmentation.inference import View

PLAIN = Augmentation(scales=(1.0, 1.0), max_class_share=1.0, flip=False, distort=False)
ZERO, ONE = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)


def draw(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def numbered(height: int, width: int) -> tuple[Tensor, Tensor]:
    """An image whose pixels say where they are, and a mask that says the same."""
    place = torch.arange(height * width).reshape(height, width) % 250
    return place.expand(3, -1, -1).to(torch.uint8), place


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("size", [(12, 20), (9, 5), (30, 7), (40, 40)])
@pytest.mark.parametrize("stride", [None, (4, 4)])
def test_image_and_mask_stay_together(seed: int, size: tuple[int, int], stride: tuple[int, int] | None) -> None:
    image, mask = numbered(12, 20)
    view = View((12, 20) if stride is None else size, stride, ZERO, ONE)
    crop, classes = augmented(image, mask, view, Augmentation((1.0, 1.0), flip=True, distort=False), draw(seed))
    assert crop.shape[1:] == classes.shape == view.size
    inside = classes != NO_CLASS
    torch.testing.assert_close((255 * crop[0])[inside].round().long(), classes[inside])
    assert crop[:, ~inside].abs().sum() == 0
    assert int(inside.sum()) == min(12, view.size[0]) * min(20, view.size[1])


@pytest.mark.parametrize("seed", range(10))
def test_scales_and_padding(seed: int) -> None:
    view = View((16, 16), (8, 8), ZERO, ONE)
    mask = torch.zeros(20, 24, dtype=torch.int64)
    crop, classes = augmented(random_image((20, 24), seed), mask, view, Augmentation((0.5, 0.5)), draw(seed))
    assert crop.shape == (3, 16, 16)
    assert int((classes == 0).sum()) == 10 * 12
    crop, classes = augmented(random_image((20, 24), seed), mask, view, Augmentation((2.0, 2.0)), draw(seed))
    assert int((classes == 0).sum()) == 16 * 16


def test_the_same_generator_gives_the_same_crop_and_another_one_another() -> None:
    image, mask = random_image((40, 60), 0), torch.randint(0, 3, (40, 60), generator=draw(1))
    view = View((16, 16), (8, 8), ZERO, ONE)
    first, second, third = (augmented(image, mask, view, Augmentation(), draw(seed)) for seed in (5, 5, 6))
    assert all(map(torch.equal, first, second))
    assert not torch.equal(first[0], third[0])


def test_crops_full_of_one_class_are_drawn_again() -> None:
    mask = torch.zeros(16, 160, dtype=torch.int64)
    mask[:, 72:80] = 1
    view, image = View((16, 16), (8, 8), ZERO, ONE), random_image((16, 160), 0)

    def hits(share: float) -> int:
        settings = Augmentation((1.0, 1.0), max_class_share=share, flip=False, distort=False)
        return sum(bool((augmented(image, mask, view, settings, draw(seed))[1] == 1).any()) for seed in range(40))

    assert hits(0.75) > 2 * hits(1.0)


def test_void_does_not_count_as_a_class() -> None:
    mask = torch.full((16, 16), NO_CLASS)
    mask[0, :2] = torch.tensor([0, 1])
    view = View((16, 16), (8, 8), ZERO, ONE)
    _, classes = augmented(random_image((16, 16), 0), mask, view, PLAIN, draw(0))
    assert torch.equal(classes, mask)


def test_distortion_changes_nothing_where_nothing_is_chosen() -> None:
    image = random_image((6, 7), 0)
    assert torch.equal(distorted(image, [0.9] * 5, [0.5] * 4), image)
    for position in range(4):
        choice = [0.9] * 5
        choice[position] = 0.1
        assert not torch.equal(distorted(image, choice, [0.9] * 4), image)
    grey = image[:1]
    assert distorted(grey, [0.1] * 5, [0.9] * 4).shape == grey.shape


def test_other_channels_keep_their_colours() -> None:
    image = torch.cat([random_image((16, 16), 0), random_image((16, 16), 1)])
    view = View((16, 16), (8, 8), (0.0,) * 6, (1.0,) * 6)
    crop, _ = augmented(image, torch.zeros(16, 16, dtype=torch.int64), view, Augmentation((1.0, 1.0), 1.0), draw(0))
    flipped = crop.flip(-1)
    torch.testing.assert_close(
        crop if torch.equal((255 * crop).round().byte(), image) else flipped, image.float() / 255
    )


def test_ranges_that_cannot_be() -> None:
    with pytest.raises(UsageError, match="--scales 2 1"):
        Augmentation(scales=(2, 1))
    with pytest.raises(UsageError, match="--max-class-share 0"):
        Augmentation(max_class_share=0)
