"""Statistics against their definitions, and a rule that tells collapse from health."""

from __future__ import annotations

import math

import pytest
import torch

from mst.train.monitors import (
    COLLAPSE_ROWS,
    CollapseWatch,
    FeatureBuffer,
    RunningMeans,
    collapse_message,
    feature_std,
    rankme,
)
from reference import rankme as reference


@pytest.mark.parametrize("shape", [(1, 4), (5, 3), (3, 5), (64, 16)])
def test_rankme_equals_its_definition(shape: tuple[int, int]) -> None:
    features = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    assert rankme(features).item() == pytest.approx(reference.rankme(features.numpy()), rel=1e-4)


def test_rankme_of_known_ranks() -> None:
    assert rankme(torch.eye(8)).item() == pytest.approx(8, rel=1e-4)
    assert rankme(torch.ones(30, 8)).item() == pytest.approx(1, rel=1e-3)
    assert torch.isfinite(rankme(torch.zeros(4, 8)))


def test_feature_std_from_equal_to_evenly_spread() -> None:
    assert feature_std(torch.ones(10, 4)).item() == pytest.approx(0, abs=1e-6)
    assert feature_std(torch.randn(5000, 64)).item() == pytest.approx(1, rel=0.02)
    assert feature_std(torch.randn(1, 64)).item() == 0


def test_the_buffer_holds_the_latest() -> None:
    buffer, twin = FeatureBuffer(2, rows=5), FeatureBuffer(2, rows=5)
    assert buffer.features().shape == (0, 2)
    for number in range(4):
        buffer.push(torch.full((2, 2), float(number)))
    assert sorted(buffer.features()[:, 0].tolist()) == [1, 2, 2, 3, 3]
    twin.load_state_dict(buffer.state_dict())
    for each in (buffer, twin):
        each.push(torch.arange(14.0).view(7, 2))
        assert sorted(each.features()[:, 0].tolist()) == [4, 6, 8, 10, 12]
    assert torch.equal(buffer.features(), twin.features())


def test_running_means() -> None:
    means, twin = RunningMeans(), RunningMeans()
    assert means.take() == {}
    means.add({"loss": 1.0})
    twin.load_state_dict(means.state_dict())
    for each in (means, twin):
        each.add({"loss": 2.0})
        assert each.take() == {"loss": 1.5}
        assert each.take() == {}


FULL = math.log(1024)
STATES = {
    "healthy": ((3.0, 6.0, 0.8), None),
    "sharp but different": ((0.01, 5.0, 0.5), None),
    "uniform": ((FULL - 1e-3, FULL, 0.8), "--objective.teacher-temp"),
    "constant, one prototype": ((0.0, 0.0, 0.8), "--objective.center-momentum"),
    "constant, spread": ((3.0, 3.01, 0.8), "--objective.center-momentum"),
    "equal features": ((3.0, 6.0, 0.001), "--optimizer.lr"),
}


@pytest.mark.parametrize("name", STATES)
def test_collapse_names_the_knob(name: str) -> None:
    (entropy, marginal, spread), knob = STATES[name]
    statistics = {"teacher_entropy": entropy, "marginal_entropy": marginal, "feature_std": spread}
    message = collapse_message(statistics, prototypes=1024)
    assert message is None if knob is None else knob in str(message)


def test_the_watch_speaks_once_per_collapse() -> None:
    watch, heard = CollapseWatch(), []
    for _ in range(2):
        heard += [watch.observe("collapsed") for _ in range(COLLAPSE_ROWS + 3)]
        heard.append(watch.observe(None))
    assert heard.count("collapsed") == 2
    assert heard[COLLAPSE_ROWS - 1] == "collapsed"
