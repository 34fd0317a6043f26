"""Images that are kept out of training: how many, which, and the crops of them."""

from __future__ import annotations

import pytest
import torch

from mst.data.sources.arrays import MemoryImages
from mst.evaluate.common.image_sets import ImageSet
from mst.planning.held_out import FEWEST, crop_pairs, set_apart


def source(count: int) -> MemoryImages:
    draw = torch.Generator().manual_seed(0)
    return MemoryImages.of_tensors(
        [torch.randint(256, (3, 8 + n % 3, 9), generator=draw, dtype=torch.uint8) for n in range(count)]
    )


@pytest.mark.parametrize(("images", "asked", "kept"), [(400, 20, 20), (400, 256, 40), (400, 0, 0), (150, 256, 0)])
def test_at_most_a_tenth_is_kept_out(images: int, asked: int, kept: int) -> None:
    whole = source(images)
    rest, apart = set_apart(whole, asked)
    names = [rest.name(position) for position in range(len(rest))]
    assert len(rest) == images - kept
    if apart is None:
        assert kept == 0
        return
    assert len(apart) == kept >= FEWEST
    both = [*names, *(apart.name(position) for position in range(kept))]
    assert sorted(both) == sorted(whole.name(position) for position in range(images))


def test_two_crops_of_each_image_the_same_each_time() -> None:
    images = ImageSet(source(20), torch.zeros(20, dtype=torch.int64))
    pairs = crop_pairs(images, (8, 8))
    assert pairs is not None
    assert pairs.shape == (2, 20, 3, 8, 8)
    assert pairs.dtype == torch.uint8
    assert torch.equal(pairs, crop_pairs(images, (8, 8)))  # type: ignore[arg-type]
    assert not torch.equal(pairs[0], pairs[1])
    assert crop_pairs(None, (8, 8)) is None
