"""What docs/evidence.md calls a difference."""

from __future__ import annotations

import statistics
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

from evidence_tables import answers_table, arms_table, difference, pooled_noise

VALUES = {
    "mst": {0: {"linear": 53.0, "k-NN": 48.0}, 1: {"linear": 54.0}, 2: {"linear": 52.5}},
    "dino": {0: {"linear": 50.0, "k-NN": 47.0}, 1: {"linear": 50.5}, 2: {"linear": 49.5}},
    "unmasked": {0: {"linear": 52.0}, 1: {"linear": 54.5}, 2: {"linear": 52.0}},
    "random": {0: {"linear": 40.0}},
}


def test_noise_is_pooled_over_arms() -> None:
    arms = [[row["linear"] for row in VALUES[arm].values()] for arm in ("mst", "dino", "unmasked")]
    assert pooled_noise(VALUES, "linear") == pytest.approx(statistics.fmean(map(statistics.variance, arms)) ** 0.5)
    assert pooled_noise(VALUES, "k-NN") is None


def test_differences_are_paired() -> None:
    clear = difference(VALUES, "linear", "unmasked", "dino")
    noise = pooled_noise(VALUES, "linear")
    assert clear is not None
    assert noise is not None
    assert clear.mean == pytest.approx((2 + 4 + 2.5) / 3)
    assert clear.error == pytest.approx(noise * (2 / 3) ** 0.5)
    assert clear.verdict == "yes"
    tie = difference(VALUES, "linear", "mst", "unmasked")
    assert tie is not None
    assert tie.verdict == "no difference found"
    back = difference(VALUES, "linear", "dino", "unmasked")
    assert back is not None
    assert back.verdict == "no, the reverse"
    one = difference(VALUES, "linear", "mst", "random")
    assert one is not None
    assert one.verdict == "one seed: no answer"
    assert difference(VALUES, "linear", "mst", "block") is None


def test_tables_name_runs_and_arms() -> None:
    arms = arms_table("cifar10", VALUES)
    assert arms[2].startswith("| mst | [0](../runs/evidence/cifar10/mst/seed_0) ")
    assert "| 53.2 ± 0.8 | 48.0 |" in arms[2]
    assert "| unmasked - dino | +2.8 ± 0.8 |" in answers_table(VALUES)[2]
