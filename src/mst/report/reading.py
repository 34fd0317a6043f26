"""What a run folder holds, read once and forgivingly: a part that is missing or broken is simply absent."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mst.runtime.results import read_jsonl
from mst.runtime.rundir import RunDir

Row = Mapping[str, Any]


@dataclass(frozen=True)
class RunRecords:
    """The files of one run.

    Attributes:
        name: the folder's name.
        config: config.json, the settings as asked for.
        plan: plan.json, the derived values and their reasons.
        environment: environment.json, versions, device and commit.
        metrics: rows of metrics.jsonl.
        results: rows of results.jsonl.
        previews: pictures, in the order of their steps.
        pictures: of evaluations, by the name of their folder.
        unreadable: lines of unreadable.txt.
    """

    name: str
    config: Row
    plan: Row
    environment: Row
    metrics: Sequence[Row]
    results: Sequence[Row]
    previews: Sequence[Path]
    pictures: Mapping[str, Sequence[Path]]
    unreadable: Sequence[str]

    def setting(self, section: str, key: str, default: Any = None) -> Any:
        """Return one setting of config.json, or the default."""
        part = self.config.get(section)
        return part.get(key, default) if isinstance(part, Mapping) else default

    def column(self, key: str) -> list[tuple[int, float]]:
        """Return (step, value) of every row of metrics that has a number under `key`."""
        return [(row["step"], float(row[key])) for row in self.metrics if is_number(row.get(key))]

    def last(self, key: str) -> float | None:
        """Return the last number under `key`."""
        column = self.column(key)
        return column[-1][1] if column else None


def is_number(value: object) -> bool:
    """Whether a JSON value is a number and finite."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < float("inf")


def read_run(run: RunDir) -> RunRecords:
    """Read all there is."""
    return RunRecords(
        name=run.root.resolve().name,
        config=_read_object(run.config),
        plan=_read_object(run.plan),
        environment=_read_object(run.environment),
        metrics=[row for row in read_jsonl(run.metrics) if isinstance(row, dict) and is_number(row.get("step"))],
        results=[row for row in read_jsonl(run.results) if isinstance(row, dict)],
        previews=sorted(run.previews.glob("*.png")),
        pictures={folder.name: sorted(folder.glob("*.png")) for folder in sorted(run.pictures.glob("*/"))},
        unreadable=_read_lines(run.unreadable),
    )


def _read_object(path: Path) -> dict[str, Any]:
    """Return a JSON object, empty where there is none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _read_lines(path: Path) -> list[str]:
    try:
        return [line for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    except OSError:
        return []
