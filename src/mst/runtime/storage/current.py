"""Which results are of the weights that a run has now: an evaluation during a training is of weights that are gone."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from mst.runtime.storage.rundir import RunDir

AnyRow = TypeVar("AnyRow", bound=Mapping[str, Any])


def weights_digest(run: RunDir) -> str:
    """Return the hash of a run's backbone file; "" where there is none."""
    try:
        return hashlib.sha256(run.backbone.read_bytes()).hexdigest()
    except OSError:
        return ""


def of_these_weights(rows: Iterable[AnyRow], run: RunDir, *, but: str) -> tuple[list[AnyRow], int]:
    """Return the rows that are not of other weights than a run's backbone file holds, and how many are.

    Args:
        rows: of results.jsonl.
        run: that they belong to; where its weights are not there, every row counts.
        but: the task whose rows name the weights that it began with, and always count.
    """
    listed = list(rows)
    if not any(row.get("backbone_sha256") for row in listed) or not (now := weights_digest(run)):
        return listed, 0
    kept = [row for row in listed if row.get("task") == but or row.get("backbone_sha256") in {"", None, now}]
    return kept, len(listed) - len(kept)
