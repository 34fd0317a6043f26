"""Which results are of the weights that a run has now: an evaluation during a training is of weights that are gone."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import PurePath
from typing import Any, TypeVar

from mst.runtime.storage.rundir import RunDir

AnyRow = TypeVar("AnyRow", bound=Mapping[str, Any])


def weights_digest(run: RunDir) -> str:
    """Return the hash of a run's backbone file; "" where there is none."""
    try:
        with run.backbone.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return ""


def of_these_weights(rows: Iterable[AnyRow], run: RunDir, *, but: str) -> tuple[list[AnyRow], int]:
    """Return the rows that are not of earlier weights of a run, and how many are; rows of other networks count.

    Args:
        rows: of results.jsonl.
        run: that they belong to; where its weights are not there, every row counts.
        but: the task whose rows name the weights that it began with, and always count.
    """
    listed = list(rows)
    if not any(row.get("backbone_sha256") for row in listed) or not (now := weights_digest(run)):
        return listed, 0
    own = {run.root.resolve().name, run.backbone.name}
    kept = [
        row
        for row in listed
        if row.get("task") == but
        or row.get("backbone_sha256") in ("", None, now)
        or PurePath(str(row.get("backbone", ""))).name not in own
    ]
    return kept, len(listed) - len(kept)
