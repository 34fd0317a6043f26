"""Multi-crop equals torchvision functions applied one by one; a sample's crops depend on the sample alone."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor

from mst.config.schema import ViewsConfig
from mst.errors import DataError
from mst.views.multicrop import MultiCrop
from mst.views.parameters import draw_parameters, draw_uniforms, height_width
from reference.views_reference import reference_crop

SMALL = ViewsConfig(global_size=32, local_size=16, local_crops=4)
ODD = ViewsConfig(global_crops=3, local_crops=2, global_size=(45, 30), local_size=(9, 23), hue=0.5, blur_sigma=(0.1, 9))
LARGE = ViewsConfig(global_size=(96, 128), local_size=(80, 72), local_crops=2)
SIZES = [(40, 50), (32, 32), (7, 5), (1, 1), (120, 30), (64, 200)]


def images(channels: int = 3, sizes: list[tuple[int, int]] = SIZES) -> list[Tensor]:
    """Smooth random images with saturated regions."""
    made = []
    for i, size in enumerate(sizes):
        noise = torch.randn(1, channels, 6, 6, generator=torch.Generator().manual_seed(i))
        image = torch.nn.functional.interpolate(noise, size, mode="bicubic")[0]
        made.append((image * 90 + 128).clamp(0, 255).to(torch.uint8))
    return made


def generators(count: int = len(SIZES)) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(100 + i) for i in range(count)]


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("config", [SMALL, ODD, LARGE], ids=["small", "odd", "large"])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_equals_torchvision_one_call_at_a_time(config: ViewsConfig, channels: int) -> None:
    B, V = len(SIZES), config.global_crops + config.local_crops
    crops = MultiCrop(config, channels=channels).batch(images(channels), generators())
    parameters = draw_parameters(config, draw_uniforms(V, generators()), np.array(SIZES), channels=channels)
    off_by_one = []
    for i in range(V * B):
        view, image = divmod(i, B)
        is_global = view < config.global_crops
        size = height_width(config.global_size if is_global else config.local_size)
        crop = crops.global_crops[view] if is_global else crops.local_crops[view - config.global_crops]
        arguments = images(channels)[image], parameters[i : i + 1], size
        exact = (crop[image].int() - reference_crop(*arguments, rounded=False).int()).abs()
        assert exact.max() <= 1
        off_by_one.append(float(exact.float().mean()))
        # torchvision on uint8 cuts the fraction off up to seven times; the jitter can amplify what was cut off.
        coarse = (crop[image].int() - reference_crop(*arguments, rounded=True).int()).abs()
        assert coarse.max() <= 10
        assert coarse.float().mean() < 4
    assert np.mean(off_by_one) < 0.05


@pytest.mark.parametrize("config", [SMALL, ODD, LARGE], ids=["small", "odd", "large"])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_batch_is_bit_for_bit_its_images(config: ViewsConfig, channels: int, threads: None) -> None:
    multicrop = MultiCrop(config, channels=channels)
    torch.set_num_threads(1)
    batch = multicrop.batch(images(channels), generators())
    torch.set_num_threads(3)
    again = multicrop.batch(images(channels), generators())
    assert torch.equal(batch.global_crops, again.global_crops)
    assert torch.equal(batch.local_crops, again.local_crops)
    for i, (image, generator) in enumerate(zip(images(channels), generators(), strict=True)):
        alone = multicrop(image, generator)
        assert torch.equal(batch.global_crops[:, i], alone.global_crops)
        assert torch.equal(batch.local_crops[:, i], alone.local_crops)


def test_more_images_than_fit_one_chunk() -> None:
    sizes = [(20 + i % 9, 20 + i % 7) for i in range(100)]
    multicrop = MultiCrop(SMALL, channels=3)
    batch = multicrop.batch(images(3, sizes), generators(100))
    for i in (0, 41, 42, 43, 99):
        alone = multicrop(images(3, sizes)[i], generators(100)[i])
        assert torch.equal(batch.global_crops[:, i], alone.global_crops)
        assert torch.equal(batch.local_crops[:, i], alone.local_crops)


@pytest.mark.parametrize("config", [SMALL, ODD, LARGE], ids=["small", "odd", "large"])
def test_images_that_are_not_worked_on_together(config: ViewsConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    multicrop = MultiCrop(config, channels=3)
    expected = multicrop.batch(images(), generators())
    for values in (1, 4 * sum(crops[:, 0].numel() for crops in expected)):
        monkeypatch.setattr("mst.views.multicrop.CUT_VALUES", values)
        got = multicrop.batch(images(), generators())
        assert torch.equal(got.global_crops, expected.global_crops)
        assert torch.equal(got.local_crops, expected.local_crops)


def test_shapes_and_types() -> None:
    crops = MultiCrop(ODD, channels=3)(images()[0], generators()[0])
    assert crops.global_crops.shape == (3, 3, 45, 30)
    assert crops.local_crops.shape == (2, 3, 9, 23)
    assert crops.global_crops.dtype == crops.local_crops.dtype == torch.uint8


def test_no_local_crops() -> None:
    config = ViewsConfig(global_size=16, local_size=8, local_crops=0)
    assert MultiCrop(config, channels=3)(images()[0], generators()[0]).local_crops.shape == (0, 3, 8, 8)
    assert MultiCrop(config, channels=3).batch(images(), generators()).local_crops.shape == (0, 6, 3, 8, 8)


def test_memory_layout_of_the_image_does_not_matter_and_the_image_is_left_alone() -> None:
    image = images()[0]
    copy = image.clone()
    swapped = image.permute(1, 2, 0).contiguous().permute(2, 0, 1)
    multicrop = MultiCrop(SMALL, channels=3)
    one, other = (multicrop(i, torch.Generator().manual_seed(1)) for i in (image, swapped))
    assert torch.equal(one.global_crops, other.global_crops)
    assert torch.equal(image, copy)


def test_everything_off_is_the_resized_crop() -> None:
    config = ViewsConfig(
        global_size=32, local_size=16, flip=0.0, jitter=0.0, grey=0.0, blur=(0.0, 0.0, 0.0), solarize=0.0
    )
    multicrop = MultiCrop(config, channels=3)
    cut, _, parameters = multicrop.cut(images(), generators())
    assert torch.equal(multicrop.batch(images(), generators()).global_crops, cut)
    for i, crop in enumerate(cut.flatten(0, 1)):
        expected = reference_crop(images()[i % len(SIZES)], parameters[i : i + 1], (32, 32), rounded=True)
        assert torch.equal(crop, expected)


@pytest.mark.parametrize("image", [torch.zeros(3, 8, 8), torch.zeros(1, 8, 8, dtype=torch.uint8)])
def test_wrong_images_are_refused(image: Tensor) -> None:
    with pytest.raises(DataError, match=r"must be uint8 \[3, H, W\]"):
        MultiCrop(SMALL, channels=3)(image, torch.Generator())
