"""Scores without labels: equal to their slow definitions, blind to nothing else, and without a trace in the run."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mst.model.pair import TeacherStudent, build_pair
from mst.train.label_free import (
    HIDDEN_SHARE,
    augmentation_retrieval,
    hidden_tokens,
    label_free_scores,
    recoloured,
    restoration_gain,
)
from mst.views.normalise import normalise
from reference import label_free as slow
from train.tiny_run import tiny_config, tiny_plan

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)


class Linear(nn.Module):
    """A backbone of one layer: features that are easy to follow."""

    def __init__(self, size: int, dim: int) -> None:
        super().__init__()
        weight = torch.randn(3 * size * size, dim, generator=torch.Generator().manual_seed(0))
        self.weight = nn.Parameter(weight)

    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1) @ self.weight


def images(count: int, size: int, seed: int) -> Tensor:
    return torch.randint(256, (count, 3, size, size), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


def tiny_pair() -> TeacherStudent:
    config = tiny_config()
    return build_pair(config.model, tiny_plan(config), channels=3, restoration=True, seed=0)


@pytest.mark.parametrize(("count", "noise"), [(2, 10), (5, 60), (70, 90)])
def test_retrieval_is_that_of_the_loop(count: int, noise: int) -> None:
    first = images(count, 4, 1)
    other = (first.float() + noise * (images(count, 4, 2).float() / 128 - 1)).clamp(0, 255).to(torch.uint8)
    pairs, backbone = torch.stack([first, other]), Linear(4, 6)
    found = augmentation_retrieval(backbone, pairs, mean=MEAN, std=STD, dtype=torch.float32)
    features = [
        backbone(normalise(recoloured(crops, side), MEAN, STD)).detach().double().numpy()
        for side, crops in enumerate(pairs)
    ]
    assert found == pytest.approx(slow.retrieval(*features))
    assert 0 <= found <= 100


def test_features_that_are_all_the_same_find_nothing() -> None:
    backbone = Linear(4, 6)
    backbone.weight.data.zero_()
    pairs = torch.stack([images(8, 4, 1), images(8, 4, 1)])
    assert augmentation_retrieval(backbone, pairs, mean=MEAN, std=STD, dtype=torch.float32) == 0


def test_colours_change_alike_in_every_run_and_differently_on_both_sides() -> None:
    crops = images(70, 4, 3)
    assert torch.equal(recoloured(crops, 0), recoloured(crops, 0))
    assert not torch.equal(recoloured(crops, 0), recoloured(crops, 1))
    assert torch.equal(recoloured(crops, 0)[:1], recoloured(crops, 0)[:1])


@pytest.mark.parametrize(("images_", "tokens", "hidden"), [(3, 16, 5), (1, 1, 1), (2, 2, 1), (5, 10, 3)])
def test_the_same_number_of_tokens_is_hidden_in_every_image(images_: int, tokens: int, hidden: int) -> None:
    mask = hidden_tokens(images_, tokens, 0)
    assert mask.sum(1).tolist() == [hidden] * images_
    assert hidden == max(1, round(HIDDEN_SHARE * tokens))


@torch.no_grad()
def test_the_gain_is_that_of_the_loop() -> None:
    pair, pixels = tiny_pair().eval(), images(3, 16, 4)
    found = restoration_gain(pair, pixels, mean=MEAN, std=STD, dtype=torch.float32)
    assert pair.decoder is not None
    given = normalise(pixels, MEAN, STD)
    mask = hidden_tokens(3, 16, 0)
    tokens = pair.student.backbone.tokens(given, mask, importance=False)
    scale, offset = (np.array(values).reshape(1, 3, 1, 1) for values in (STD, MEAN))
    restored, whole = (
        each.double().numpy() * scale + offset for each in (pair.decoder(tokens.patches, tokens.grid), given)
    )
    hidden = mask.view(3, 4, 4).repeat_interleave(4, 1).repeat_interleave(4, 2).numpy()
    assert found == pytest.approx(slow.restoration_gain(whole, restored, hidden), abs=1e-4)


def test_scores_leave_the_networks_as_they_were() -> None:
    pair, pairs = tiny_pair(), torch.stack([images(4, 16, 5), images(4, 16, 6)])
    before = {name: value.clone() for name, value in pair.state_dict().items()}
    scores = label_free_scores(pair, pairs, restores=True, mean=MEAN, std=STD, dtype=torch.float32)
    assert set(scores) == {"retrieval_top1", "retrieval_top1_se", "retrieval_images", "restore_gain"}
    assert scores["retrieval_images"] == 4
    assert scores["retrieval_top1_se"] > 0
    assert pair.student.training
    assert not pair.teacher.backbone.training
    assert all(torch.equal(value, before[name]) for name, value in pair.state_dict().items())
    again = label_free_scores(pair, pairs, restores=False, mean=MEAN, std=STD, dtype=torch.float32)
    assert again == {name: value for name, value in scores.items() if name != "restore_gain"}


def test_images_of_one_colour_have_no_gain() -> None:
    pair = tiny_pair()
    pairs = torch.full((2, 4, 3, 16, 16), 7, dtype=torch.uint8)
    scores = label_free_scores(pair, pairs, restores=True, mean=MEAN, std=STD, dtype=torch.float32)
    assert "restore_gain" not in scores or math.isfinite(scores["restore_gain"])


def test_the_reference_of_a_known_case() -> None:
    one = np.array([[1.0, 0.0], [0.0, 1.0]])
    assert slow.retrieval(one, one) == 100
    assert slow.retrieval(one, one[::-1]) == 0
