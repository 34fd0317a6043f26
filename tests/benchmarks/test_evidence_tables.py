"""What docs/evidence.md calls a difference."""

from __future__ import annotations

import importlib.util
import json
import math
import statistics
import sys
from pathlib import Path

import numpy as np
import pytest

# Not by sys.path: names of other benchmarks (views) would hide packages of tests.
_FILE = Path(__file__).parents[2] / "benchmarks" / "evidence_tables.py"
_SPEC = importlib.util.spec_from_file_location("evidence_tables", _FILE)
assert _SPEC is not None
assert _SPEC.loader is not None
evidence = importlib.util.module_from_spec(_SPEC)
sys.modules["evidence_tables"] = evidence
_SPEC.loader.exec_module(evidence)

VALUES = {
    "mst": {0: {"linear": 53.0, "k-NN": 48.0}, 1: {"linear": 54.0}, 2: {"linear": 52.5}},
    "dino": {0: {"linear": 50.0, "k-NN": 47.0}, 1: {"linear": 50.5}, 2: {"linear": 49.5}},
    "unmasked": {0: {"linear": 52.0}, 1: {"linear": 54.5}, 2: {"linear": 52.0}},
    "random": {0: {"linear": 40.0}},
}


def test_noise_is_pooled_over_arms() -> None:
    arms = [[row["linear"] for row in VALUES[arm].values()] for arm in ("mst", "dino", "unmasked")]
    assert evidence.pooled_noise(VALUES, "linear") == pytest.approx(
        statistics.fmean(map(statistics.variance, arms)) ** 0.5
    )
    assert evidence.pooled_noise(VALUES, "k-NN") is None


def test_differences_are_paired() -> None:
    clear = evidence.difference(VALUES, "linear", ["unmasked"], ["dino"])
    noise = evidence.pooled_noise(VALUES, "linear")
    assert clear is not None
    assert noise is not None
    assert clear.mean == pytest.approx((2 + 4 + 2.5) / 3)
    assert clear.error == pytest.approx(noise * (2 / 3) ** 0.5)
    assert clear.verdict == "yes"
    tie = evidence.difference(VALUES, "linear", ["mst"], ["unmasked"])
    assert tie is not None
    assert tie.verdict == "no difference found"
    back = evidence.difference(VALUES, "linear", ["dino"], ["unmasked"])
    assert back is not None
    assert back.verdict == "no, the reverse"
    one = evidence.difference(VALUES, "linear", ["mst"], ["random"])
    assert one is not None
    assert one.verdict == "one seed: no answer"
    assert evidence.difference(VALUES, "linear", ["mst"], ["block"]) is None


def test_a_run_in_another_compute_type_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evidence, "RUNS", tmp_path)
    for seed, precision in enumerate(("bfloat16: this CPU has it", "float32: this CPU has no bfloat16")):
        folder = tmp_path / "cifar10" / "mst" / f"seed_{seed}"
        folder.mkdir(parents=True)
        (folder / "environment.json").write_text(json.dumps({"precision": precision}))
    line = evidence.arms_table("cifar10", {"mst": {0: {}, 1: {}}})[2]
    assert "[0](../runs/evidence/cifar10/mst/seed_0) [1 (float32)](../runs/evidence/cifar10/mst/seed_1)" in line


def test_a_difference_of_differences_takes_the_noise_of_four_arms() -> None:
    found = evidence.difference(VALUES, "linear", ["mst", "dino"], ["unmasked", "random"])
    noise = evidence.pooled_noise(VALUES, "linear")
    assert found is not None
    assert noise is not None
    assert found.pairs == (53 + 50 - 52 - 40,)
    assert found.error == pytest.approx(2 * noise)


def test_how_large_a_difference_is_found_four_times_in_five() -> None:
    """Counted with other experiments than those it was set by."""
    draws = np.random.default_rng(7)
    for seeds in (2, 3):
        shift = evidence.errors_to_find(seeds)
        rows = draws.normal(shift, math.sqrt(seeds), (20_000, seeds))
        found = [row.mean() > 2 and min(row) > 0 for row in rows]
        assert statistics.fmean(found) == pytest.approx(0.8, abs=0.01)
        assert shift > 2.84, "more than without the rule of signs"


def test_attention_stands_beside_what_needs_no_network() -> None:
    row = {"COCO Jaccard": 10.0, "COCO Jaccard, compared with": 25.0, "COCO pointing": 40.0}
    line = evidence.objects_table("cifar10", {"mst": {0: row, 1: row}})[2]
    assert line.startswith("| mst | 10.0 ± 0.0 (25.0) | 40.0 ± 0.0 | - |")


def test_tables_name_runs_and_arms() -> None:
    arms = evidence.arms_table("cifar10", VALUES)
    assert arms[2].startswith("| mst | [0](../runs/evidence/cifar10/mst/seed_0) ")
    assert "| 53.2 ± 0.8 | 48.0 |" in arms[2]
    whole, restoring, *_ = evidence.answers_table(VALUES)[2:]
    assert "| mst - dino | +3.2 ± 0.8 |" in whole
    assert "| unmasked - dino | +2.8 ± 0.8 |" in restoring
    assert evidence.answers_table({"mst": VALUES["mst"]}) == []


def test_scores_without_labels_are_ranked_against_those_with() -> None:
    numbers = [{"k-NN": 40.0 + i, "linear": 50.0 - i, "RankMe": float(i * i)} for i in range(5)]
    ranked = evidence.ranks_table({"mst": dict(enumerate(numbers))})
    assert ranked[2:] == ["| RankMe | 5 | +1.00 | -1.00 |"]
    assert evidence.ranks_table({"mst": dict(enumerate(numbers[:4]))}) == []


def test_the_page_shows_the_runs_that_are_there() -> None:
    assert evidence.tables(evidence.read_all()) in evidence.PAGE.read_text(encoding="utf-8"), (
        "run benchmarks/evidence_tables.py"
    )
