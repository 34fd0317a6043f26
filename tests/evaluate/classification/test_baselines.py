"""Baselines see colours, edges and pixels and nothing else; the same numbers as slow definitions; any channels."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from evaluate.fakes import FakeBackbone, colour_sets
from mst.errors import DataError
from mst.evaluate.classification.baselines import knn_answers, simple_baselines
from mst.evaluate.classification.descriptors import QUANTILES, colour_statistics, directions, small_pixels
from mst.evaluate.classification.knn import KnnProtocol, evaluate_knn
from mst.evaluate.common.features import FeatureSettings
from mst.evaluate.common.image_sets import ImageSet, LabelledSets
from mst.evaluate.common.protocol import ImageTransform
from reference import descriptors as slow

QUIET = FeatureSettings(progress=False)


def image(channels: int, height: int, width: int, seed: int = 0) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    return torch.randint(256, (channels, height, width), generator=draw, dtype=torch.uint8)


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 9, 7), (3, 32, 32), (6, 5, 12), (1, 2, 2), (2, 1, 5), (1, 1, 1)])
def test_statistics_are_those_of_the_loop(shape: tuple[int, int, int]) -> None:
    pixels = image(*shape)
    found = colour_statistics(pixels).double().numpy()
    expected = slow.colour_statistics(pixels.numpy(), QUANTILES)
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, atol=2e-4)


def test_a_flat_image_has_finite_statistics() -> None:
    for value in (0, 128, 255):
        found = colour_statistics(torch.full((3, 8, 8), value, dtype=torch.uint8))
        assert bool(found.isfinite().all())


def test_directions_tell_stripes_apart() -> None:
    stripes = (torch.arange(16) // 2 % 2).float()
    upright, level = directions(stripes.expand(16, 16)), directions(stripes.expand(16, 16).T)
    assert int(upright.argmax()) != int(level.argmax())
    assert float(upright.sum()) == pytest.approx(1)


@pytest.mark.parametrize(("channels", "numbers"), [(1, 64), (3, 192), (16, 1024), (64, 1024)])
def test_pixels_are_bounded(channels: int, numbers: int) -> None:
    found = small_pixels(image(channels, 20, 30))
    assert len(found) == numbers
    assert float(found.mean()) == pytest.approx(float(image(channels, 20, 30).float().mean()) / 255, abs=0.02)


def coloured(channels: int = 3) -> LabelledSets:
    """Two classes that differ in brightness only, and twice as many of the first."""
    images, labels = [], []
    for number in range(60):
        label = int(number % 3 == 2)
        images.append((image(channels, 12, 12, number).float() / 4 + 100 * label).to(torch.uint8))
        labels.append(label)
    sets = [ImageSet.from_tensors(images[part], labels[part]) for part in (slice(0, 30), slice(30, 60))]
    return LabelledSets(("dark", "bright"), *sets)


@pytest.mark.parametrize("channels", [1, 3, 5])
def test_brightness_is_found_and_the_majority_counted(channels: int) -> None:
    transform = ImageTransform((8, 8), (0.5,) * channels, (0.5,) * channels)
    found = simple_baselines(coloured(channels), transform, settings=QUIET, seed=0)
    assert [each.which for each in found] == ["majority", "colour", "pixels"]
    assert found[0].answers.percent == pytest.approx(100 * 20 / 30, abs=1e-5)
    assert found[1].answers.percent == 100
    assert found[2].answers.percent == 100
    again = simple_baselines(coloured(channels), transform, settings=QUIET, seed=0)
    assert [each.answers for each in again] == [each.answers for each in found]


def test_one_image_a_class_is_enough() -> None:
    sets = coloured()
    few = LabelledSets(sets.classes, sets.train.subset([0, 2]), sets.val)
    found = simple_baselines(few, ImageTransform((8, 8)), settings=QUIET, seed=0)
    assert found[1].answers.images == 30


def test_one_class_is_refused() -> None:
    sets = coloured()
    alone = LabelledSets(sets.classes, sets.train.subset([0, 1]), sets.val)
    with pytest.raises(DataError, match="all of class dark"):
        simple_baselines(alone, ImageTransform((8, 8)), settings=QUIET, seed=0)


def test_knn_answers_are_those_of_the_evaluation() -> None:
    sets, transform = colour_sets(train=30, val=40, classes=4), ImageTransform((8, 8))
    answers = knn_answers(FakeBackbone(), sets, transform, neighbors=5, settings=QUIET)  # type: ignore[arg-type]
    protocol = KnnProtocol(neighbors=(5,), headline=5)
    result = evaluate_knn(FakeBackbone(), sets, transform, protocol, settings=QUIET)  # type: ignore[arg-type]
    assert answers.images == 40
    assert answers.percent == pytest.approx(result.metrics["top1"])
