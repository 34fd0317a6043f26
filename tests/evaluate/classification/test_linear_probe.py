"""The linear probe: its update is torch's SGD, its learning rate is chosen without the validation set."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from evaluate.fakes import FakeBackbone, colour_sets
from mst.errors import UsageError
from mst.evaluate.classification.linear_heads import LinearHeads
from mst.evaluate.classification.linear_probe import (
    LinearProtocol,
    cached_batches,
    evaluate_linear,
    held_out_mask,
    summarise,
    train_heads,
)
from mst.evaluate.common.features import Features, FeatureSettings
from mst.evaluate.common.protocol import ImageTransform, LowShot

QUIET = FeatureSettings(forward_batch=7, workers=2, precision="fp32", progress=False)
SHORT = LinearProtocol(lrs=(0.01, 0.1, 1.0), epochs=10, batch_size=16)


def heads(rates: tuple[float, ...], features: int = 5, classes: int = 3) -> LinearHeads:
    draw = torch.Generator().manual_seed(0)
    return LinearHeads(features, classes, rates, momentum=0.9, generator=draw, device=torch.device("cpu"))


def test_every_rate_equals_its_own_torch_sgd() -> None:
    draw = torch.Generator().manual_seed(3)
    together = heads((0.01, 0.3, 2.0))
    alone = []
    for index, rate in enumerate((0.01, 0.3, 2.0)):
        layer = nn.Linear(5, 3)
        layer.weight.data = together.weight[:, index].T.clone()
        layer.bias.data.zero_()
        alone.append((layer, torch.optim.SGD(layer.parameters(), lr=rate, momentum=0.9), rate))
    for step in range(12):
        x, y = torch.randn(6, 5, generator=draw), torch.randint(3, (6,), generator=draw)
        factor = 0.5 * (1 + math.cos(math.pi * step / 12))
        together.step(x, y, factor)
        for layer, optimizer, rate in alone:
            optimizer.param_groups[0]["lr"] = rate * factor
            optimizer.zero_grad()
            F.cross_entropy(layer(x), y).backward()
            optimizer.step()
    for index, (layer, _, _) in enumerate(alone):
        torch.testing.assert_close(together.weight[:, index].T, layer.weight.data, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(together.bias[index], layer.bias.data, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(together.logits(x)[:, index], layer(x).detach(), rtol=1e-4, atol=1e-5)


def test_an_empty_batch_changes_nothing() -> None:
    probe = heads((0.1,))
    before = probe.weight.clone()
    probe.step(torch.empty(0, 5), torch.empty(0, dtype=torch.int64), 1.0)
    assert torch.equal(probe.weight, before)


@pytest.mark.parametrize("chunk", [1, 4, 100])
def test_ranks_do_not_depend_on_the_chunk(chunk: int) -> None:
    draw = torch.Generator().manual_seed(5)
    x, y = torch.randn(11, 5, generator=draw), torch.randint(3, (11,), generator=draw)
    probe = heads((0.1, 1.0))
    probe.step(x, y, 1.0)
    ranks = probe.ranks(x, y, chunk=chunk)
    assert ranks.shape == (2, 11)
    assert torch.equal((ranks == 0)[0], probe.logits(x)[:, 0].argmax(1) == y)


def test_held_out_part_has_every_class_that_can_spare_one() -> None:
    labels = torch.tensor([0] * 40 + [1] * 2 + [2] + [3] * 15)
    mask = held_out_mask(labels, 0.1, seed=0)
    assert labels[mask].bincount(minlength=4).tolist() == [4, 1, 0, 2]
    assert torch.equal(mask, held_out_mask(labels, 0.1, seed=0))


def test_held_out_samples_teach_only_the_first_classifiers() -> None:
    x, y = torch.randn(20, 4, generator=torch.Generator().manual_seed(0)), torch.arange(20) % 2
    held_out = torch.arange(20) >= 14
    changed = x.clone()
    changed[held_out] += 5
    trained = []
    for features in (x, changed):
        train = Features(features, y, ("",) * 20, tuple(range(20)))
        trained.append(
            train_heads(
                cached_batches(train, batch_size=8, seed=0), y, held_out, SHORT, num_classes=2, num_features=4,
                device=torch.device("cpu"), seed=0, progress=False,
            )
        )  # fmt: skip
    assert torch.equal(trained[0][1].weight, trained[1][1].weight)
    assert not torch.equal(trained[0][0].weight, trained[1][0].weight)


@pytest.mark.parametrize("mode", ["cached", "augmented"])
def test_recovers_separable_classes(mode: str) -> None:
    protocol = LinearProtocol(lrs=(0.1, 1.0), epochs=25, batch_size=16, mode=mode)
    backbone = FakeBackbone().train()
    result = evaluate_linear(backbone, colour_sets(), ImageTransform((8, 8)), protocol, settings=QUIET, seed=1)
    assert result.metrics["top1"] == 100.0
    assert result.metrics["top1_best_on_val"] == 100.0
    assert result.metrics["top1_held_out"] == 100.0
    assert result.protocol["blocks"] == 2  # four asked for, the backbone has two
    assert [row["lr"] for row in result.extra["rates"]] == [0.1, 1.0]
    assert backbone.training
    assert sum(backbone.batches) == (56 if mode == "cached" else 56 + 25 * 40)
    again = evaluate_linear(FakeBackbone(), colour_sets(), ImageTransform((8, 8)), protocol, settings=QUIET, seed=1)
    assert again == result


def test_the_rate_is_chosen_on_the_held_out_part() -> None:
    on_val = torch.tensor([[0, 3, 3, 3], [0, 0, 0, 3], [0, 0, 3, 3]])
    on_held_out = torch.tensor([[0, 3], [3, 3], [3, 0]])
    metrics, rows, lr = summarise((0.1, 0.2, 0.3), on_val, on_held_out)
    assert lr == 0.1  # equal to 0.3 on the held-out part: the lower one
    assert metrics["top1"] == 25.0
    assert metrics["top1_best_on_val"] == 75.0
    assert metrics["top1_held_out"] == 50.0
    assert metrics["top5"] == 100.0
    assert [row["top1_held_out"] for row in rows] == [50.0, 0.0, 50.0]


def test_one_image_per_class_needs_one_rate() -> None:
    once = LowShot(train_per_class=1)
    with pytest.raises(UsageError, match="no class has two training images"):
        evaluate_linear(
            FakeBackbone(), colour_sets(), ImageTransform((8, 8)), LinearProtocol(labels=once), settings=QUIET
        )
    protocol = LinearProtocol(lrs=(1.0,), epochs=25, labels=once)
    result = evaluate_linear(FakeBackbone(), colour_sets(), ImageTransform((8, 8)), protocol, settings=QUIET)
    assert result.extra["train_images"] == 4
    assert "top1_held_out" not in result.metrics


@pytest.mark.parametrize("arguments", [{"lrs": ()}, {"lrs": (0.0,)}, {"epochs": 0}, {"held_out_share": 1.0}])
def test_protocol_refuses(arguments: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        LinearProtocol(**arguments)
