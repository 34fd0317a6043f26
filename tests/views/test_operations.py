"""Each operation is within one grey level of torchvision's uint8 function, and equal to its float function."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
import torchvision.transforms.v2.functional as TF
from torch import Tensor

from mst.errors import ConfigError
from mst.views import colour, crop
from mst.views.normalise import normalise
from reference.views_reference import reference_blur, reference_jitter

ADJUST = {
    "brightness": colour.adjust_brightness,
    "contrast": colour.adjust_contrast,
    "saturation": colour.adjust_saturation,
    "hue": colour.adjust_hue,
}


def colours(n: int = 3) -> Tensor:
    """Random pixels with a share of greys, primaries, and pairs of equal channels: uint8 [n, 3, 24, 31]."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (n, 3, 24, 31), generator=generator, dtype=torch.uint8)
    pixels[:, :, :3] = torch.randint(0, 2, (n, 3, 3, 31), generator=generator, dtype=torch.uint8) * 255
    pixels[:, :, 3] = pixels[:, :1, 3]
    pixels[:, 1, 4] = pixels[:, 0, 4]
    pixels[:, 2, 5] = pixels[:, 1, 5]
    pixels[:, 0, 6] = pixels[:, 2, 6]
    return pixels


def applied(images: Tensor, operation: Callable[[Tensor], None]) -> Tensor:
    planes = images.float().transpose(0, 1).contiguous()  # [C, n, h, w]
    operation(planes)
    return planes.transpose(0, 1)


def column(factors: list[float]) -> Tensor:
    return torch.tensor(factors)[:, None, None]


@pytest.mark.parametrize(
    ("name", "factors"),
    [
        ("brightness", [0.0, 0.6, 1.7]),
        ("contrast", [0.0, 0.6, 1.7]),
        ("saturation", [0.0, 0.8, 1.9]),
        ("hue", [-0.5, -0.1, 0.07]),
        ("hue", [0.5, 0.31, -0.26]),
    ],
)
def test_jitter(name: str, factors: list[float]) -> None:
    images = colours()
    got = applied(images, lambda planes: ADJUST[name](planes, column(factors)))
    for image, factor, ours in zip(images, factors, got, strict=True):
        exact = reference_jitter(image.double() / 255, name, factor) * 255
        # contrast takes the mean of whole grey values, so that its sum is exact
        assert (ours - exact).abs().max() < (0.1 if name == "contrast" else 1e-3)
        assert (ours.round() - reference_jitter(image, name, factor)).abs().max() <= 1


def test_contrast_of_any_number_of_channels() -> None:
    images = colours().flatten(0, 1)[None, :5]
    got = applied(images, lambda planes: colour.adjust_contrast(planes, column([0.7])))
    assert (got[0].round() - reference_jitter(images[0], "contrast", 0.7)).abs().max() <= 1


def test_grey() -> None:
    images = colours()
    got = applied(images, colour.turn_grey)
    assert (got - TF.rgb_to_grayscale(images, num_output_channels=3)).abs().max() < 1


def test_solarize() -> None:
    images = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    assert torch.equal(applied(images, colour.solarize), TF.solarize(images, 128).float())


@pytest.mark.parametrize("size", [(24, 31), (2, 2), (3, 17)])
def test_blur(size: tuple[int, int]) -> None:
    images, sigma = colours(4)[..., : size[0], : size[1]], np.array([0.3, 0.9, 2.0, 7.0])
    got = applied(images, lambda planes: crop.blur(planes, sigma))
    for image, s, ours in zip(images, sigma.tolist(), got, strict=True):
        assert (ours - reference_blur(image.double(), s)).abs().max() < 1e-3


@pytest.mark.parametrize("size", [(24, 31), (2, 2), (3, 17)])
@pytest.mark.parametrize("sigma", [0.3, 0.9, 2.0, 7.0])
def test_blur_of_one_crop(size: tuple[int, int], sigma: float) -> None:
    image = colours(1)[0, :, : size[0], : size[1]]
    got = image.float()
    crop.blur_one(got, sigma)
    assert (got - reference_blur(image.double(), sigma)).abs().max() < 1e-3


@pytest.mark.parametrize("operation", [*ADJUST.values(), lambda planes, _: colour.turn_grey(planes)])
def test_a_crop_is_the_same_bits_alone_and_among_others(operation: Callable[[Tensor, Tensor], None]) -> None:
    images, factors = colours(5), column([0.31, -0.07, 0.5, 0.8, 1.9])
    got = applied(images, lambda planes: operation(planes, factors))
    for i in range(5):
        alone = applied(images[i : i + 1, ..., :29], lambda planes, i=i: operation(planes, factors[i : i + 1]))
        if operation is not colour.adjust_contrast:  # whose mean is that of the whole crop
            assert torch.equal(got[i : i + 1, ..., :29], alone)
        alone = applied(images[i : i + 1], lambda planes, i=i: operation(planes, factors[i : i + 1]))
        assert torch.equal(got[i : i + 1], alone)


def test_a_blur_that_is_left_out_changes_nothing() -> None:
    images = colours()
    assert torch.equal(reference_blur(images, crop.SMALLEST_SIGMA), images)


def test_rows_that_are_not_chosen_stay() -> None:
    images = colours(5)
    got = applied(images, lambda planes: colour.on_rows(planes, [1, 4], colour.solarize))
    assert torch.equal(got[[0, 2, 3]], images[[0, 2, 3]].float())
    assert torch.equal(got[[1, 4]], applied(images[[1, 4]], colour.solarize))


def test_normalise() -> None:
    crops = colours()
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    expected = TF.normalize(TF.to_dtype(crops, torch.float32, scale=True), mean, std)
    assert torch.allclose(normalise(crops, mean, std), expected, atol=1e-5)
    assert normalise(crops[None], (0.5,), (0.5,)).max() == 1.0


def test_normalise_refuses_another_number_of_channels() -> None:
    with pytest.raises(ConfigError, match=r"views\.mean has 3 values, images have 4 channels"):
        normalise(torch.zeros(4, 2, 2, dtype=torch.uint8), (0.1, 0.2, 0.3), (1.0,))
