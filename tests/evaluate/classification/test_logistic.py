"""Logistic regression: exact gradient, solved minimum, honest choice of the penalty."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from evaluate.fakes import FakeBackbone, colour_sets
from mst.errors import UsageError
from mst.evaluate.classification import logistic
from mst.evaluate.classification.logistic import (
    LogisticProtocol,
    best_penalty,
    evaluate_logistic,
    loss_and_gradient,
    solve,
    solve_path,
)
from mst.evaluate.common.features import FeatureSettings
from mst.evaluate.common.protocol import ImageTransform, LowShot

QUIET = FeatureSettings(precision="fp32", progress=False)


def problem(n: int = 60, dim: int = 5, classes: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(0)
    y = torch.randint(classes, (n,), generator=draw)
    return torch.randn(n, dim, generator=draw) + F.one_hot(y, dim), y


@pytest.mark.parametrize("chunk", [7, 8192])
def test_the_gradient_is_that_of_autograd(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logistic, "CHUNK", chunk)
    x, y = problem()
    weight, bias = (torch.randn(*shape, requires_grad=True) for shape in ((5, 3), (3,)))
    loss = F.cross_entropy(x @ weight + bias, y) + 0.05 * weight.square().sum()
    loss.backward()
    found = loss_and_gradient(x, y, weight.detach(), bias.detach(), 0.1)
    for value, expected in zip(found, (loss.detach(), weight.grad, bias.grad), strict=True):
        torch.testing.assert_close(value, expected)


@pytest.mark.parametrize("penalty", [1.0, 0.01, 1e-4])
def test_the_minimum_is_that_of_plain_descent(penalty: float) -> None:
    x, y = problem()
    found = solve(x, y, penalty, LogisticProtocol(), num_classes=3)
    assert found.converged
    weight, bias = torch.zeros(5, 3, dtype=torch.float64), torch.zeros(3, dtype=torch.float64)
    for _ in range(4000):
        _, by_weight, by_bias = loss_and_gradient(x.double(), y, weight, bias, penalty)
        weight, bias = weight - 0.5 * by_weight, bias - 0.5 * by_bias
    torch.testing.assert_close(found.weight, weight, atol=1e-5 / penalty, rtol=0)
    points = (weight, bias), (found.weight, found.bias)
    loss = [float(loss_and_gradient(x, y, *point, penalty)[0]) for point in points]
    assert loss[1] == pytest.approx(loss[0], abs=1e-6)


def test_every_penalty_is_solved_and_the_larger_wins_among_equals() -> None:
    x, y = problem()
    path = solve_path(x, y, LogisticProtocol(penalties=(0.01, 1.0, 0.1)), num_classes=3, progress=False)
    assert list(path) == [1.0, 0.1, 0.01]
    alone = solve(x, y, 0.01, LogisticProtocol(), num_classes=3)
    torch.testing.assert_close(path[0.01].weight, alone.weight, atol=1e-3, rtol=0)
    assert best_penalty({1.0: 50.0, 0.1: 60.0, 0.01: 60.0}) == 0.1


def test_evaluate_finds_separable_classes() -> None:
    backbone = FakeBackbone()
    result = evaluate_logistic(backbone, colour_sets(), ImageTransform((8, 8)), settings=QUIET)
    assert result.metrics["top1"] == result.metrics["top1_held_out"] == 100.0
    assert result.extra["converged"]
    assert result.extra["penalty"] in LogisticProtocol().penalties
    assert result.protocol["blocks"] == 1
    again = evaluate_logistic(backbone, colour_sets(), ImageTransform((8, 8)), settings=QUIET)
    assert again == result


def test_low_shot() -> None:
    few = LogisticProtocol(labels=LowShot(train_per_class=2))
    result = evaluate_logistic(FakeBackbone(), colour_sets(), ImageTransform((8, 8)), few, settings=QUIET)
    assert result.extra["train_images"] == 8
    one = LogisticProtocol(labels=LowShot(train_per_class=1))
    with pytest.raises(UsageError, match="name one with --penalties"):
        evaluate_logistic(FakeBackbone(), colour_sets(), ImageTransform((8, 8)), one, settings=QUIET)
    named = LogisticProtocol(penalties=(0.1,), labels=LowShot(train_per_class=1))
    result = evaluate_logistic(FakeBackbone(), colour_sets(), ImageTransform((8, 8)), named, settings=QUIET)
    assert "top1_held_out" not in result.metrics


@pytest.mark.parametrize(
    "arguments",
    [{"penalties": ()}, {"penalties": (0.0,)}, {"iterations": 0}, {"tolerance": 0.0}, {"held_out_share": 1.0}],
)
def test_protocol_refuses(arguments: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        LogisticProtocol(**arguments)
