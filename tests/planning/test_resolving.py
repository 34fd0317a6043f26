"""What is chosen is measured, and chosen again where it is far slower than was counted on."""

from __future__ import annotations

import pytest

from config.test_choosing import CPU, cost, own
from mst.config.choosing import choose, lengthen
from mst.config.facts import DeviceFacts, SetFacts
from mst.config.load import override
from mst.config.schema import RunConfig
from mst.planning.resolving import ATTEMPTS, FEW_SEEN, kept_share, over_a_run, settled, warn_of_few

PHOTOGRAPHS = SetFacts(9_213, (128, 128), detail=128)


def test_a_run_as_fast_as_expected_is_measured_once() -> None:
    measured: list[RunConfig] = []

    def measure(config: RunConfig) -> tuple[float, float]:
        measured.append(config)
        return 0.8 * CPU.flops_per_second / cost(config), cost(config)

    chosen, place, speed = settled(lambda place: choose(own(15), PHOTOGRAPHS, place), measure, CPU)
    assert measured == [chosen]
    assert place == CPU
    assert speed == pytest.approx(0.8 * CPU.flops_per_second / cost(chosen))


@pytest.mark.parametrize("slower", [3.0, 10.0])
def test_a_slower_one_gets_smaller_until_it_fits(slower: float) -> None:
    measured: list[RunConfig] = []

    def measure(config: RunConfig) -> tuple[float, float]:
        measured.append(config)
        return CPU.flops_per_second / slower / cost(config), cost(config)

    def choice(place: DeviceFacts) -> RunConfig:
        return choose(own(60), PHOTOGRAPHS, place)

    first = choice(CPU)
    chosen, place, speed = settled(choice, measure, CPU)
    assert 1 < len(measured) <= ATTEMPTS
    assert cost(chosen) < cost(first)
    assert place.flops_per_second == pytest.approx(CPU.flops_per_second / slower)
    assert lengthen(chosen, PHOTOGRAPHS, place, images_per_second=speed).train.epochs > 1


def test_what_no_choice_makes_faster_is_measured_once_more_at_most() -> None:
    calls = 0

    def measure(config: RunConfig) -> tuple[float, float]:
        nonlocal calls
        calls += 1
        return 0.1, cost(config)

    settled(lambda place: choose(own(15), PHOTOGRAPHS, place), measure, CPU)
    assert calls <= ATTEMPTS


@pytest.mark.parametrize("speed", [20.0, 25.0])
def test_a_time_too_short_to_help_is_named_with_one_that_would_do(
    speed: float, capsys: pytest.CaptureFixture[str]
) -> None:
    chosen = lengthen(choose(own(15), PHOTOGRAPHS, CPU), PHOTOGRAPHS, CPU, images_per_second=speed)
    warn_of_few(chosen, CPU, speed, PHOTOGRAPHS.count)
    told = " ".join(capsys.readouterr().err.split())
    assert ("allow --minutes 47, or start from released weights" in told) == (speed * 15 * 60 * 0.9 < FEW_SEEN)
    for other in (override(chosen, {"model.init_from": "timm:deit"}), chosen.model_copy(update={"recipe": "x"})):
        warn_of_few(other, CPU, speed, PHOTOGRAPHS.count)
        assert not capsys.readouterr().err


def test_few_images_seen_as_often_as_is_of_use_are_no_matter_of_time(capsys: pytest.CaptureFixture[str]) -> None:
    few = SetFacts(10, (128, 128), detail=128)
    warn_of_few(lengthen(choose(own(15), few, CPU), few, CPU, images_per_second=100.0), CPU, 100.0, 10)
    assert not capsys.readouterr().err


def test_a_small_set_is_decoded_once() -> None:
    """100 images: 10 seconds to decode and learn from, 5 where they are in memory; 100 seconds."""
    assert over_a_run(10, 20, 1.0, images=100, seconds=100) == pytest.approx((100 + 90 * 20) / 100)
    assert over_a_run(10, 20, 0.0, images=100, seconds=100) == pytest.approx(10)
    assert over_a_run(10, 20, 0.5, images=100, seconds=100) == pytest.approx((100 + 90 / (0.5 / 20 + 0.5 / 10)) / 100)
    assert over_a_run(10, 20, 1.0, images=2_000, seconds=100) == 10


def test_what_stays_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mst.planning.resolving.quarter_of_memory", lambda: 100 * 64 * 64 * 3)
    small, many = SetFacts(50, (64, 64), detail=64), SetFacts(400, (64, 64), detail=64)
    assert kept_share(own(15), small) == 1
    assert kept_share(own(15), many) == 0.25
    assert kept_share(own(15), SetFacts(50, (480, 640), detail=64)) == 0
    assert kept_share(override(own(15), {"data.cache": False}), small) == 0
