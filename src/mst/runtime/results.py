"""Rows of results and metrics as JSON lines: the only thing stages share after training."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from mst.errors import RunFailure


@dataclass(frozen=True)
class Result:
    """One evaluation of one backbone.

    Attributes:
        task: knn, linear, patch_segmentation, ...
        metrics: metric name -> value; accuracies and IoU in percent.
        protocol: every setting that changes the numbers.
        backbone: path of the evaluated file, or "random".
        backbone_sha256: hash of that file ("" for a module in memory).
        seed: the seed of the evaluation.
        data: name of the data set: its folder's, or "in memory"; "" in rows of older versions.
        data_identity: what the data set holds, `mst.runtime.identity.DataIdentity.row()`; empty in rows of older
            versions.
        extra: pictures, per-class tables and the like, by name.
    """

    task: str
    metrics: dict[str, float]
    protocol: dict[str, Any]
    backbone: str = ""
    backbone_sha256: str = ""
    seed: int = 0
    data: str = ""
    data_identity: dict[str, Any] = field(default_factory=dict)
    extra: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        odd = [name for name, value in self.metrics.items() if isinstance(value, float) and not math.isfinite(value)]
        if odd:
            raise RunFailure(f"{self.task}: {', '.join(odd)} is not a finite number, so there is no result")

    def row(self) -> dict[str, Any]:
        """Return the record as a JSON-ready dictionary."""
        return asdict(self)


def append_jsonl(path: Path, row: Mapping[str, Any]) -> None:
    """Append one row; a row is one line, written in one call."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row, allow_nan=True) + "\n")


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """Return all complete rows; a half-written last line (a killed process) and damaged ones are left out."""
    if not path.is_file():
        return []
    rows = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            rows.append(json.loads(line))
        except (ValueError, RecursionError):  # no JSON, a number of thousands of digits, brackets without end
            continue
    return rows
