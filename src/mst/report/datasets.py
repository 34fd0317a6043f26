"""The data set of a row of results: recognised by its digest, named by the shortest end of its path that is unique."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from mst.report.reading import Row, visible
from mst.runtime.identity import DataIdentity

SHOWN_LETTERS = 6
"""Letters of a digest that are shown, where two data sets had the same path."""
OLDER = " (an older row, content unknown)"
LABELS = {"train_share": 1.0, "train_per_class": None}
"""Settings of a protocol that say how many labels were used -> their value for all labels."""


def data_key(row: Row) -> str:
    """Return the key of a row's data: the digest, or in rows of older versions the name, or ""."""
    identity = DataIdentity.from_row(row.get("data_identity"))
    if identity is not None:
        return f"digest {identity.digest}"
    return f"name {row['data']}" if row.get("data") else ""


def data_names(rows: Iterable[Row]) -> dict[str, str]:
    """Return a name for each key of the rows' data: `data`; or `one/data` and `two/data` if both are called `data`.

    The same images with labels from several places are called by these: `data (labels.csv, column kind)`.
    """
    paths: dict[str, list[str]] = {}
    labels: dict[str, str] = {}
    for row in rows:
        labels.setdefault(data_key(row), _labels_of(row))
        identity = DataIdentity.from_row(row.get("data_identity"))
        path = identity.name if identity is not None else str(row.get("data", ""))
        paths.setdefault(data_key(row), visible(path).rstrip("/").split("/"))
    return {key: _name(key, paths, labels) for key in paths if key}


def _labels_of(row: Row) -> str:
    """Return where a row's labels stand."""
    extra = row.get("extra")
    split = extra.get("split") if isinstance(extra, dict) else None
    found = split.get("labels") if isinstance(split, dict) else None
    return visible(found) if isinstance(found, str) else "names of folders" if isinstance(split, dict) else ""


def drawn_labels(row: Row) -> dict[str, Any]:
    """Return the seed of a row that used a part of the labels; with another seed it is another measurement."""
    protocol = row.get("protocol")
    labels = protocol.get("labels") if isinstance(protocol, dict) else None
    if not isinstance(labels, dict) or all(labels.get(key, usual) == usual for key, usual in LABELS.items()):
        return {}
    return {"seed": row.get("seed")}


def _name(key: str, paths: dict[str, list[str]], labels: dict[str, str]) -> str:
    """Return the shortest end of a key's path that no other key has; of equal paths with its labels, or its digest."""
    own, others = paths[key], [path for other, path in paths.items() if other not in {key, ""}]
    for count in range(1, len(own) + 1):
        tail = own[-count:]
        if not any(path[-count:] == tail for path in others):
            return "/".join(tail)
    if labels[key] and [labels[other] for other in paths if paths[other] == own].count(labels[key]) == 1:
        return f"{own[-1]} ({labels[key]})"
    kind, _, digest = key.partition(" ")
    return own[-1] + (f" (content {digest[:SHOWN_LETTERS]})" if kind == "digest" else OLDER)
