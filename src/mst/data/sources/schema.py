"""Which column of a table holds images, which one classes, and what the classes are called.

Hugging Face's `datasets` notes its types in the metadata of the file; other files are judged by the types of their
columns and by name.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from mst.errors import DataError, UsageError
from mst.runtime.names import shown

IMAGES = ("image", "img", "picture", "photo", "jpg", "png", "bytes")
"""Names of columns that hold images, the likeliest first."""
LABELS = ("label", "labels", "cls", "class", "target", "category")
"""Names of columns that hold classes, the likeliest first."""


@dataclass(frozen=True)
class Column:
    """A column of encoded images.

    Attributes:
        name: of the column.
        inner: of the field that holds the bytes; empty = the column does.
        kind: Arrow's type of the bytes.
    """

    name: str
    inner: str
    kind: Any

    @property
    def path(self) -> str:
        """What parquet calls it."""
        return f"{self.name}.{self.inner}" if self.inner else self.name

    def __str__(self) -> str:
        return shown(self.name)


def find_column(schema: Any, wanted: str, file: str) -> Column:
    """Return the column of images.

    Args:
        schema: of the file, pyarrow's.
        wanted: its name; empty = find it.
        file: for the message.

    Raises:
        UsageError: no column of this name, or several could be it.
        DataError: none can hold images.
    """
    found = [column for field in schema if (column := _column(field)) is not None]
    columns = ", ".join(f"{shown(field.name)} ({field.type})" for field in schema) or "none"
    if wanted:
        named = [column for column in found if column.name == wanted]
        if not named and wanted in schema.names:
            raise DataError(
                f"{shown(file)}: the column {shown(wanted)} holds no images but {schema.field(wanted).type}: columns: "
                f"{columns}"
            )
        if not named:
            raise UsageError(f"{shown(file)} has no column {shown(wanted)}: {columns}")
        return named[0]
    noted = {name for name, kind in _features(schema).items() if kind.get("_type") == "Image"}
    found = [column for column in found if column.name in noted] or found
    if not found:
        raise DataError(f"{shown(file)} has no column of images (bytes, or bytes and path): {columns}")
    if len(found) == 1:
        return found[0]
    by_name = [column for name in IMAGES for column in found if column.name.lower() == name]
    if not by_name:
        names = ", ".join(map(str, found))
        raise UsageError(f"{shown(file)} has several columns that may hold images: {names}: name one, {file}:COLUMN")
    return by_name[0]


def label_column(schema: Any) -> str | None:
    """Return the name of the column of classes; None = there is none."""
    noted = [name for name, kind in _features(schema).items() if kind.get("_type") == "ClassLabel"]
    named = [name for wanted in LABELS for name in schema.names if name.lower() == wanted]
    return next((name for name in [*named, *noted] if name in schema.names), None)


def class_names(schema: Any, column: str) -> tuple[str, ...] | None:
    """Return what the classes of a column are called; None where the file does not say it."""
    names = _features(schema).get(column, {}).get("names")
    return tuple(map(str, names)) if isinstance(names, list) and names else None


def _column(field: Any) -> Column | None:
    """Return a field as a column of images; None = it cannot be one."""
    kind = field.type
    if _is_bytes(kind):
        return Column(field.name, "", kind)
    inner = {part.name: part.type for part in kind} if str(kind).startswith("struct") else {}
    return Column(field.name, "bytes", inner["bytes"]) if "bytes" in inner and _is_bytes(inner["bytes"]) else None


def _is_bytes(kind: Any) -> bool:
    return str(kind) in {"binary", "large_binary", "binary_view"} or str(kind).startswith("fixed_size_binary")


def _features(schema: Any) -> dict[str, dict[str, Any]]:
    """Return the types that `datasets` notes of the columns."""
    try:
        noted = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return {name: kind for name, kind in noted.items() if isinstance(kind, dict)}
    except (KeyError, ValueError, TypeError, AttributeError):
        return {}
