"""Rows of results and metrics as JSON lines: the only thing stages share after training."""

from __future__ import annotations

import errno
import json
import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from mst.errors import RunFailure
from mst.runtime.storage.files import may_write

LARGEST = 1e300
"""Largest size of a metric that is accepted; real ones are far smaller."""


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

    @staticmethod
    def from_row(row: Mapping[str, Any]) -> Result | None:
        """Return the record that a row holds; None where it is damaged."""
        try:
            found = Result(**row)
        except (TypeError, AttributeError, RunFailure):  # other keys, or metrics that are none
            return None
        texts = (found.task, found.backbone, found.backbone_sha256, found.data)
        sound = (
            all(isinstance(text, str) for text in texts)
            and all(isinstance(part, dict) for part in (found.protocol, found.data_identity, found.extra))
            and all(type(value) in {int, float} and abs(value) < LARGEST for value in found.metrics.values())
            and isinstance(found.extra.get("unreadable", []), list)
        )
        return found if sound else None

    def row(self) -> dict[str, Any]:
        """Return the record as a JSON-ready dictionary."""
        return asdict(self)


def plain_json(value: Any) -> Any:
    """Return a value with null for every number that is not finite: JSON has no others."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: plain_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain_json(item) for item in value]
    return value


def append_jsonl(path: Path, row: Mapping[str, Any]) -> None:
    """Append a row as one line, written in one call; half a row that a killed process left is ended by a line break.

    Raises:
        OSError: the disk refused, or there is something at `path` that is no file.
    """
    if not may_write():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists() and not path.is_file():  # opening a pipe would wait for its reader
        raise OSError(errno.EEXIST, "it is no file: move it away", str(path))
    line = (json.dumps(plain_json(row), allow_nan=False) + "\n").encode()
    with path.open("ab+", buffering=0) as file:
        end = file.seek(0, os.SEEK_END)
        if end and (file.seek(-1, os.SEEK_END), file.read(1))[1] != b"\n":
            line = b"\n" + line
        rest = memoryview(line)
        try:
            while rest:  # a disk that is full takes a part without an error, and refuses what is left
                rest = rest[file.write(rest) :]
        except OSError:
            if file.seek(0, os.SEEK_END) == end + len(line) - len(rest):  # nobody has appended since
                file.truncate(end)
            raise


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """Return all complete rows; a half-written last line (a killed process) and damaged ones are left out."""
    if not path.is_file():
        return []
    rows = []
    for line in path.read_bytes().split(b"\n"):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):  # no JSON, no UTF-8, numbers of thousands of digits
            continue
        if isinstance(row, dict):
            rows.append(row)
    return rows
