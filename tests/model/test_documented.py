"""docs/models.md lists exactly the backbones that the shared promises are tested on, with what they give."""

from __future__ import annotations

import re
from itertools import takewhile
from pathlib import Path

import pytest

from model.test_backbones import CASES, Case

PAGE = Path(__file__).resolve().parents[2] / "docs" / "models.md"
POOLED = {"avg": "mean of the patch tokens", "map": "attention pooling", "token": "CLS"}


def documented() -> list[list[str]]:
    """The cells of the table, without the first column and without `code` marks."""
    lines = PAGE.read_text().splitlines()
    first = next(index for index, line in enumerate(lines) if line.startswith("| "))
    table = list(takewhile(lambda line: line.startswith("|"), lines[first:]))
    return [[cell.strip() for cell in line.replace("`", "").split("|")[2:-1]] for line in table[2:]]


def expected(case: Case) -> list[str]:
    """The cells of a case."""
    backbone = case.build()
    model = backbone.model
    changes = [f" with patch {case.patch_size}"] if case.patch_size else []
    if case.channels != 3:
        changes.append(f", {case.channels} channel{'s' * (case.channels > 1)}")
    pooled = POOLED[model.global_pool]
    if "distilled" in case.name:
        pooled = "mean of CLS and distillation token"
    importance = "CLS attention"
    if getattr(model, "cls_token", None) is None:
        importance = "attention received" + (" in the last stage" if hasattr(model, "layers") else "")
    crops = ", ".join(f"{height}x{width}" for height, width in (case.size, case.other_size))
    return [case.name + "".join(changes), crops, pooled, importance]


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_every_case_is_documented(case: Case) -> None:
    assert expected(case) in documented()


def test_nothing_else_is_documented() -> None:
    assert len(documented()) == len(CASES)
    assert {re.split("[ ,]", row[0])[0] for row in documented()} == {case.name for case in CASES.values()}
