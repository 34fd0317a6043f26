"""The files of a run folder, read once; parts that are missing or damaged are treated as absent."""

from __future__ import annotations

import json
import math
import os
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeGuard

from mst.runtime.dynamics.repair import Repair, read_repairs
from mst.runtime.names import shown
from mst.runtime.storage.current import of_these_weights
from mst.runtime.storage.results import read_jsonl
from mst.runtime.storage.rundir import RunDir

Row = Mapping[str, Any]
FINETUNE = "finetune"
"""Task of the row that a fine-tuning leaves."""
LARGEST = 1 << 26
"""Largest file that is read, in bytes; those of real runs have some thousand."""
DEEPEST = 24
"""Deepest nesting of lists and objects that is kept; real files have four levels."""
LARGEST_NUMBER = 1e300
"""A larger number is damage; arithmetic with it would be infinite."""


@dataclass(frozen=True)
class RunRecords:
    """The files of one run.

    Attributes:
        name: the folder's name.
        config: config.json, the settings as asked for.
        plan: plan.json, the derived values and their reasons.
        environment: environment.json, versions, device and commit.
        metrics: rows of metrics.jsonl.
        results: rows of results.jsonl that are of the weights that the run has now.
        outdated: how many rows are of other weights.
        previews: pictures, in the order of their steps.
        pictures: of evaluations, by the name of their folder.
        unreadable: lines of unreadable.txt.
        repairs: rows of repairs.jsonl.
        abandoned: rows of metrics that each repair left.
        ablation: whether the run belongs to an ablation.
        errors: folders of what classifiers get wrong, by task.
        root: the folder.
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
    ablation: bool = False
    errors: Mapping[str, Path] = field(default_factory=dict)
    root: Path = Path()
    outdated: int = 0
    repairs: Sequence[Repair] = ()
    abandoned: Sequence[Sequence[Row]] = ()

    def setting(self, section: str, key: str, default: Any = None) -> Any:
        """Return one setting of config.json, or the default."""
        part = self.config.get(section)
        value = part.get(key, default) if isinstance(part, Mapping) else default
        return default if isinstance(value, Mapping | list) and not isinstance(default, Mapping | list) else value

    def setting_number(self, section: str, key: str) -> float | None:
        """Return one setting of config.json that is a number; None for anything else."""
        value = self.setting(section, key)
        return value if is_number(value) else None

    def numbers(self, key: str, length: int) -> tuple[float, ...] | None:
        """Return a list of so many numbers in plan.json, such as (height, width); None for anything else."""
        value = self.plan.get(key)
        if not isinstance(value, list) or len(value) != length or not all(map(is_number, value)):
            return None
        return tuple(value)

    def planned(self, key: str) -> float | None:
        """Return a number of plan.json; None for anything else."""
        value = self.plan.get(key)
        return value if is_number(value) else None

    def column(self, key: str) -> list[tuple[int, float]]:
        """Return (step, value) of every row of metrics that has a number under `key`."""
        return points_of(self.metrics, key)

    def last(self, key: str) -> float | None:
        """Return the last number under `key`."""
        column = self.column(key)
        return column[-1][1] if column else None


def points_of(rows: Sequence[Row], key: str) -> list[tuple[int, float]]:
    """Return (step, value) of every row that has a number under `key`."""
    return [(row["step"], float(row[key])) for row in rows if is_number(row.get(key))]


def is_number(value: object) -> TypeGuard[float]:
    """Whether a JSON value is a number of a size that can be measured."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < LARGEST_NUMBER


def is_step(value: object) -> TypeGuard[float]:
    """Whether a JSON value is a number of steps."""
    return is_number(value) and 0 <= value < 1 << 53


def read_run(run: RunDir) -> RunRecords:
    """Read all there is."""
    results, outdated = of_these_weights(result_rows(run.results), run, but=FINETUNE)
    return RunRecords(
        name=visible(run.root.resolve().name),
        config=_read_object(run.config),
        plan=_read_object(run.plan),
        environment=_read_object(run.environment),
        metrics=[row for row in result_rows(run.metrics) if is_step(row.get("step"))],
        results=results,
        outdated=outdated,
        previews=_pictures(run.previews),
        pictures={visible(folder.name): _pictures(folder) for folder in _folders(run.pictures)},
        unreadable=[line for line in read_bytes(run.unreadable).decode(errors="replace").splitlines() if line.strip()],
        ablation=run.ablation.exists(),
        errors={visible(folder.name): folder for folder in _folders(run.errors)},
        root=run.root,
        repairs=(repairs := _repairs(run)),
        abandoned=[
            [row for row in result_rows(folder / run.metrics.name) if is_step(row.get("step"))]
            for folder in _folders(run.abandoned)[: len(repairs)]
        ],
    )


def printable(text: str) -> str:
    """Return a text that can be written as UTF-8; a byte of a file's name that is no character becomes `\\xff`."""
    try:
        return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    except UnicodeEncodeError:  # half of a pair, from JSON
        return text.encode("utf-8", "backslashreplace").decode()


def visible(text: str) -> str:
    """Return a text as a name on one line, see `mst.runtime.names`; it may come from JSON and hold half a pair."""
    return shown(printable(text))


def clean(value: Any, depth: int = 0) -> Any:
    """Return a JSON value that can be worked with.

    Numbers that are too large and values that are nested too deeply become None; texts become printable.
    """
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, int | float) and not isinstance(value, bool):
        return value if abs(value) < LARGEST_NUMBER and not (isinstance(value, float) and math.isnan(value)) else None
    if not isinstance(value, dict | list):
        return value
    if depth == DEEPEST:
        return None
    if isinstance(value, list):
        return [clean(item, depth + 1) for item in value]
    return {printable(key): clean(item, depth + 1) for key, item in value.items()}


def read_bytes(path: Path) -> bytes:
    """Return the content of a file; b"" if it is missing, too large, or no regular file (a pipe would never end)."""
    try:
        found = os.stat(path)
        return path.read_bytes() if stat.S_ISREG(found.st_mode) and found.st_size <= LARGEST else b""
    except OSError:
        return b""


def parse_json(content: bytes) -> Any:
    """Return a JSON value, cleaned; None where there is none."""
    try:
        return clean(json.loads(content))
    except (ValueError, RecursionError):
        return None


def _read_object(path: Path) -> dict[str, Any]:
    """Return a JSON object, empty where there is none."""
    content = parse_json(read_bytes(path))
    return content if isinstance(content, dict) else {}


def steps_of(run: RunDir) -> tuple[int | None, int | None]:
    """Return the steps that a run has made, by its rows, and those that it plans; None = not known."""
    done = max((int(row["step"]) for row in result_rows(run.metrics) if is_step(row.get("step"))), default=None)
    total = _read_object(run.plan).get("total_steps")
    return done, int(total) if is_step(total) else None


def result_rows(path: Path) -> list[dict[str, Any]]:
    """Return the rows that are objects."""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            return []
        return [clean(row) for row in read_jsonl(path) if isinstance(row, dict)]
    except (OSError, ValueError, RecursionError):
        return []


def _repairs(run: RunDir) -> list[Repair]:
    try:
        return read_repairs(run) if stat.S_ISREG(os.stat(run.repairs).st_mode) else []
    except (OSError, ValueError, RecursionError, OverflowError):
        return []


def _folders(path: Path) -> list[Path]:
    try:
        return sorted(entry for entry in path.iterdir() if entry.is_dir())
    except OSError:
        return []


def _pictures(folder: Path) -> list[Path]:
    try:
        return sorted(path for path in folder.glob("*.png") if path.is_file())
    except OSError:
        return []
