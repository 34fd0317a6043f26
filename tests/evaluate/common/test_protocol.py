"""The evaluation transform and the drawn labels."""

from __future__ import annotations

import pytest
import torch
from torchvision.transforms import v2

from mst.errors import UsageError
from mst.evaluate.common.protocol import ImageTransform, LowShot, cover_size, random_resized_crop


def noise(*shape: int) -> torch.Tensor:
    return torch.randint(256, shape, generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


@pytest.mark.parametrize("shape", [(300, 400), (400, 300), (257, 256), (256, 256), (500, 1001)])
def test_equals_the_usual_recipe_at_224(shape: tuple[int, int]) -> None:
    image = noise(3, *shape)
    usual = v2.Compose(
        [
            v2.Resize(256, interpolation=v2.InterpolationMode.BICUBIC, antialias=True),
            v2.CenterCrop(224),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ]
    )
    torch.testing.assert_close(ImageTransform((224, 224))(image), usual(image))


def test_an_image_of_the_training_size_is_used_whole_unless_told_otherwise() -> None:
    image = noise(3, 32, 32)
    assert torch.equal(ImageTransform((32, 32)).crop(image), image)
    enlarged = ImageTransform((32, 32), whole_if_exact=False).crop(image)
    assert enlarged.shape == image.shape
    assert not torch.equal(enlarged, image)


@pytest.mark.parametrize("shape", [(1, 1), (7, 90), (31, 33), (100, 3), (640, 480)])
@pytest.mark.parametrize("size", [(32, 32), (16, 48), (48, 16)])
def test_any_image_gives_the_size(shape: tuple[int, int], size: tuple[int, int]) -> None:
    found = ImageTransform(size)(noise(3, *shape))
    assert found.shape == (3, *size)
    assert found.dtype == torch.float32
    height, width = cover_size(shape, size, 256 / 224)
    assert height >= size[0]
    assert width >= size[1]


def test_wrong_channels_are_named() -> None:
    with pytest.raises(UsageError, match="images have 1 channels, the backbone was trained with 3"):
        ImageTransform((8, 8))(noise(1, 8, 8))


@pytest.mark.parametrize("shape", [(1, 1), (2, 50), (64, 64), (37, 20)])
def test_random_crops_have_the_size_and_depend_on_the_generator_only(shape: tuple[int, int]) -> None:
    image = noise(3, *shape)
    crops = [random_resized_crop(image, (12, 8), torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)]
    assert crops[0].shape == (3, 12, 8)
    assert torch.equal(crops[0], crops[1])
    assert shape[0] * shape[1] <= 100 or not torch.equal(crops[0], crops[2])


def test_low_shot_draws_per_class() -> None:
    labels = torch.tensor([0] * 200 + [1] * 50 + [2])
    chosen = LowShot(train_share=0.1).select(labels, seed=0)
    assert labels[chosen].bincount().tolist() == [20, 5, 1]
    assert chosen == sorted(set(chosen))
    assert chosen == LowShot(train_share=0.1).select(labels, seed=0)
    assert chosen != LowShot(train_share=0.1).select(labels, seed=1)
    assert labels[LowShot(train_per_class=3).select(labels, seed=0)].bincount().tolist() == [3, 3, 1]
    assert LowShot().select(labels, seed=0) == list(range(251))


@pytest.mark.parametrize("arguments", [{"train_share": 0.0}, {"train_share": 1.1}, {"train_per_class": 0}])
def test_low_shot_refuses(arguments: dict[str, float]) -> None:
    with pytest.raises(UsageError):
        LowShot(**arguments)
