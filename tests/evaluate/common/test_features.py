"""Features: order, evaluation mode, unreadable files, batches that do not divide the set."""

from __future__ import annotations

from collections.abc import Container
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from evaluate.fakes import FakeBackbone, colour_images
from mst.data.sources.arrays import MemoryImages
from mst.errors import DataError, UsageError
from mst.evaluate.common.features import FeatureSettings, extract_features, forward_batch, frozen
from mst.evaluate.common.image_sets import ImageSet, LabelledSets
from mst.evaluate.common.protocol import ImageTransform

TRANSFORM = ImageTransform((8, 8))


def settings(batch: int = 4, *, share: float = 0.5) -> FeatureSettings:
    return FeatureSettings(batch, workers=3, precision="fp32", max_unreadable_share=share, progress=False)


@pytest.mark.parametrize("batch", [1, 4, 5, 9, 100])
def test_rows_follow_the_set_in_any_batch_size(batch: int) -> None:
    images, labels = colour_images(9, 3)
    backbone = FakeBackbone()
    found = extract_features(backbone, ImageSet.from_tensors(images, labels), TRANSFORM, settings=settings(batch))
    expected = torch.stack([TRANSFORM(image).mean((1, 2)) for image in images])
    torch.testing.assert_close(found.features, expected)
    assert found.features.dtype == torch.float32
    assert found.labels.tolist() == labels
    assert found.positions == tuple(range(9))
    assert sum(backbone.batches) == 9


class Breaking(MemoryImages):
    """Images some of which cannot be read."""

    broken: Container[int] = ()

    def read_bytes(self, position: int, most: int | None = None) -> bytearray:
        if position in self.broken:
            raise OSError("cut short")
        return super().read_bytes(position, most)


def broken_set(broken: set[int], count: int = 9) -> ImageSet:
    images, labels = colour_images(count, 3)
    source = Breaking([image.permute(1, 2, 0).numpy() for image in images], [f"{index}.jpg" for index in range(count)])
    object.__setattr__(source, "broken", broken)
    return ImageSet(source, torch.tensor(labels))


def test_unreadable_images_have_no_row_and_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    found = extract_features(FakeBackbone(), broken_set({0, 4, 5, 6, 7}), TRANSFORM, settings=settings(share=0.6))
    assert found.positions == (1, 2, 3, 8)
    assert found.names == ("1.jpg", "2.jpg", "3.jpg", "8.jpg")
    assert found.labels.tolist() == [1, 2, 0, 2]
    assert found.unreadable[0] == "0.jpg: cut short"
    assert "5 of 9 images left out" in capsys.readouterr().err


@pytest.mark.parametrize(("broken", "share"), [({1, 2}, 0.2), (set(range(9)), 1.0)])
def test_too_many_unreadable_images_stop(broken: set[int], share: float) -> None:
    with pytest.raises(DataError, match=r"of 9 images can(not)? be read.*cut short"):
        extract_features(FakeBackbone(), broken_set(broken), TRANSFORM, settings=settings(share=share))


def test_another_error_of_the_reader_is_not_swallowed() -> None:
    def fails(image: Tensor) -> Tensor:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        extract_features(FakeBackbone(), broken_set(set()), fails, settings=settings())


def test_frozen_gives_every_mode_back_even_after_an_error() -> None:
    network = nn.Sequential(nn.Dropout(), nn.BatchNorm1d(2)).train()
    network[1].eval()
    with pytest.raises(KeyError), frozen(network):  # noqa: PT012
        assert not any(module.training for module in network.modules())
        assert not torch.is_grad_enabled()
        raise KeyError
    assert [module.training for module in network.modules()] == [True, True, False]


def test_bfloat16_features_come_back_as_float32() -> None:
    class Matrix(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x.flatten(1))

    found = forward_batch(Matrix(12, 3), torch.ones(2, 3, 2, 2), lambda net, x: net(x), "bf16")
    assert found.dtype == torch.float32
    assert torch.equal(found, found.bfloat16().float())


@pytest.mark.parametrize("arguments", [{"forward_batch": 0}, {"workers": 0}, {"max_unreadable_share": 1.5}])
def test_settings_refuse(arguments: dict[str, float]) -> None:
    with pytest.raises(UsageError):
        FeatureSettings(**arguments)


def test_sets_from_a_folder(tmp_path: Path) -> None:
    for split, count in (("train", 3), ("test", 2)):
        for name in ("cat", "dog"):
            (tmp_path / split / name).mkdir(parents=True)
            for index in range(count):
                Image.new("RGB", (8, 8), (index, 0, 0)).save(tmp_path / split / name / f"{index}.png")
    sets = LabelledSets.from_folder(tmp_path, channels=1, train_limit=4)
    assert sets.classes == ("cat", "dog")
    assert (len(sets.train), len(sets.val)) == (4, 4)
    assert sorted(sets.train.labels.tolist()) == [0, 0, 1, 1]
    assert sets.val.read(0).shape == (1, 8, 8)
    assert [sets.val.subset([3, 0]).name(place) for place in (0, 1)] == [sets.val.name(3), sets.val.name(0)]
    assert torch.equal(sets.val.subset([3]).read(0), sets.val.read(3))


def test_labels_outside_the_classes_and_empty_sets_are_refused() -> None:
    images = ImageSet.from_tensors(*colour_images(4, 4))
    with pytest.raises(DataError, match=r"label outside 0\.\.2"):
        LabelledSets(("a", "b", "c"), images, images)
    with pytest.raises(DataError, match="val set is empty"):
        LabelledSets(("a", "b", "c", "d"), images, images.subset([]))
