"""What is chosen is measured, and chosen again where it is far slower than was counted on."""

from __future__ import annotations

import pytest

from config.test_choosing import CPU, cost, own
from mst.config.choosing import choose, lengthen
from mst.config.facts import DeviceFacts, SetFacts
from mst.config.schema import RunConfig
from mst.planning.resolving import ATTEMPTS, settled

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
        return choose(own(15), PHOTOGRAPHS, place)

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
