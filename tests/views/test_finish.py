"""The two halves of the augmentation give what one call gives, wherever the second half runs."""

from __future__ import annotations

from dataclasses import fields

import numpy as np
import pytest
import torch

from mst.config.schema import ViewsConfig
from mst.views.finish import finish, finish_crops
from mst.views.multicrop import MultiCrop
from mst.views.parameters import COLOUR_NUMBERS, ColourParameters, draw_parameters, least_image
from mst.views.record import Crops
from views.test_multicrop import LARGE, ODD, SIZES, SMALL, generators, images

B = len(SIZES)


def cut_views(config: ViewsConfig, channels: int) -> tuple[Crops, torch.Tensor]:
    crops = MultiCrop(config, channels=channels).cut(images(channels), generators())
    numbers = torch.from_numpy(crops.parameters.as_numbers()).view(-1, B, COLOUR_NUMBERS)
    return Crops(crops.global_crops, crops.local_crops, torch.arange(B)), numbers


@pytest.mark.parametrize("config", [SMALL, ODD, LARGE], ids=["small", "odd", "large"])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_colours_changed_later_are_those_of_one_call(config: ViewsConfig, channels: int) -> None:
    expected = MultiCrop(config, channels=channels).batch(images(channels), generators())
    views = finish_crops(*cut_views(config, channels), torch.device("cpu"))
    assert torch.equal(views.global_crops, expected.global_crops)
    assert torch.equal(views.local_crops, expected.local_crops)
    assert torch.equal(views.indices, torch.arange(B))


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("config", [SMALL, ODD, LARGE], ids=["small", "odd", "large"])
def test_a_gpu_is_within_one_grey_level(config: ViewsConfig) -> None:
    expected = MultiCrop(config, channels=3).batch(images(), generators())
    views = finish_crops(*cut_views(config, 3), torch.device("cuda"))
    for got, want in zip(views, expected, strict=False):
        assert (got.cpu().int() - want.int()).abs().max() <= 1


def test_no_local_crops() -> None:
    views = finish_crops(*cut_views(SMALL.model_copy(update={"local_crops": 0}), 3), torch.device("cpu"))
    assert views.local_crops.shape == (0, B, 3, 16, 16)


@pytest.mark.parametrize("size", [(20, 20), (100, 110)])
def test_crops_that_nothing_happens_to_stay(size: tuple[int, int]) -> None:
    crops = torch.randint(0, 256, (5, 3, *size), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    before = crops.clone()
    numbers = np.zeros((5, COLOUR_NUMBERS))
    numbers[:, :4] = -1
    numbers[3, -1] = 1  # solarize
    finish(crops, ColourParameters.from_numbers(numbers), crops)
    assert torch.equal(crops[[0, 1, 2, 4]], before[[0, 1, 2, 4]])
    assert torch.equal(crops[3], torch.minimum(before[3], 255 - before[3]))


def test_numbers_come_back() -> None:
    parameters = MultiCrop(ODD, channels=3).cut(images(), generators()).parameters
    numbers = parameters.as_numbers()
    assert numbers.shape == (5 * B, COLOUR_NUMBERS)
    again = ColourParameters.from_numbers(numbers)
    for field in fields(again):
        assert np.array_equal(getattr(again, field.name), getattr(parameters, field.name))


@pytest.mark.parametrize("config", [ViewsConfig(), SMALL, ODD, LARGE, ViewsConfig(local_crops=0)])
def test_no_crop_of_a_large_enough_image_is_enlarged(config: ViewsConfig) -> None:
    pixels, side = least_image(config)
    random = np.random.default_rng(0)
    heights = np.round(side + random.exponential(3 * side, 500)).astype(np.int64)
    widths = np.maximum(-(-pixels // heights), side)
    uniforms = random.random((36, config.global_crops + config.local_crops, 500))
    p = draw_parameters(config, uniforms, np.stack([heights, widths], axis=1), channels=3)
    sizes = [config.global_size] * config.global_crops + [config.local_size] * config.local_crops
    needed = np.repeat([(size, size) if isinstance(size, int) else size for size in sizes], 500, axis=0)  # [V * 500, 2]
    assert (p.height >= needed[:, 0]).all()
    assert (p.width >= needed[:, 1]).all()
