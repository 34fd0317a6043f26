"""One stream of crops: what is trained on, replayed and measured; with the same views however it is cut."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from data.pictures import write_textures
from mst.data.sampler import Share
from mst.planning.setup import Setup, prepare
from mst.planning.stream import CropStream
from mst.views.normalise import normalise
from mst.views.record import Crops
from mst.workflows.pretraining import load_recipe


@pytest.fixture(scope="module")
def setup(tmp_path_factory: pytest.TempPathFactory) -> Setup:
    folder = tmp_path_factory.mktemp("images")
    write_textures(folder, 12)
    return prepare(load_recipe("debug", {"data.train": str(folder), "train.batch_size": 6, "train.epochs": 2}))


def crops_of(setup: Setup, **options: object) -> list[Crops]:
    with CropStream(setup, None, first_step=1, **options) as stream:  # type: ignore[arg-type]
        return list(stream)


def test_views_are_the_crops_normalised(setup: Setup) -> None:
    crops = crops_of(setup)
    assert len(crops) == setup.plan.total_steps - 1
    with CropStream(setup, None, first_step=1) as stream:
        for some, views in zip(crops, stream.views(), strict=True):
            assert some.global_crops.dtype == some.local_crops.dtype == torch.uint8
            for pixels, seen in ((some.global_crops, views.global_crops), (some.local_crops, views.local_crops)):
                assert torch.equal(seen, normalise(pixels, setup.plan.mean, setup.plan.std))
            assert torch.equal(some.indices, views.indices)
            assert some.positions == views.positions == range(6)


@pytest.mark.parametrize(("processes", "accumulate"), [(1, 1), (1, 4), (2, 2), (3, 1)])
@pytest.mark.parametrize("colour", ["loader", "device"])
def test_microbatches_of_all_processes_make_the_batch(
    setup: Setup, processes: int, accumulate: int, colour: str
) -> None:
    config = setup.config
    train = config.train.model_copy(update={"accumulate": accumulate})
    runtime = config.runtime.model_copy(update={"colour": colour})
    cut = replace(setup, config=config.model_copy(update={"train": train, "runtime": runtime}))
    shares = [iter(crops_of(cut, share=Share(rank, processes))) for rank in range(processes)]
    for whole in crops_of(setup):
        parts = [next(share) for share in shares for _ in range(accumulate)]
        parts.sort(key=lambda part: part.positions.start if part.positions else 0)
        assert [place for part in parts for place in part.positions or ()] == list(range(6))
        assert torch.equal(torch.cat([part.indices for part in parts]), whole.indices)
        assert torch.equal(torch.cat([part.global_crops for part in parts], dim=1), whole.global_crops)
        assert torch.equal(torch.cat([part.local_crops for part in parts], dim=1), whole.local_crops)
    assert [next(share, None) for share in shares] == [None] * processes
