"""Shards as files: written one image after the other, then read back; the same images give the same bytes."""

from __future__ import annotations

import importlib
import io
import json
import os
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from mst.data.files.tar_listing import Listed, listing
from mst.data.packing.encoding import Packed, digest_of
from mst.errors import MissingExtra, RunFailure
from mst.runtime.names import shown

ROWS = 64
"""Images of a row group of parquet: read together, so few."""
SHARED_MODE = 0o644


class Entry(NamedTuple):
    """An image and what belongs to it.

    Attributes:
        key: unique in all shards, of the same length everywhere.
        label: number of its class; None = it has none.
        packed: its bytes.
    """

    key: str
    label: int | None
    packed: Packed


class ShardWriter(Protocol):
    """Writes one shard."""

    def add(self, entry: Entry) -> None:
        """Write an image."""

    def close(self) -> str | None:
        """Write what is left, to disk; return the text of the list beside the shard, of tar files."""


class TarShard:
    """A tar file of WebDataset's layout: KEY.jpg, KEY.cls; without times and owners.

    Args:
        path: of the file.
    """

    def __init__(self, path: Path) -> None:
        self._file = path.open("wb")
        self._tar = tarfile.open(fileobj=self._file, mode="w", format=tarfile.USTAR_FORMAT)  # noqa: SIM115
        self._samples: list[list[Listed]] = []

    def add(self, entry: Entry) -> None:
        """Write an image, and the number of its class."""
        self._samples.append([])
        self._member(f"{entry.key}.{entry.packed.extension}", entry.packed.data)
        if entry.label is not None:
            self._member(f"{entry.key}.cls", str(entry.label).encode())

    def close(self) -> str:
        """Write the end, and return the list of the members."""
        self._tar.close()
        _flushed(self._file)
        return listing(self._samples)

    def _member(self, name: str, data: bytes) -> None:
        info = tarfile.TarInfo(name)
        info.size, info.mode = len(data), SHARED_MODE
        self._samples[-1].append(Listed(name, self._tar.offset + tarfile.BLOCKSIZE, len(data)))
        self._tar.addfile(info, io.BytesIO(data))


class ParquetShard:
    """A parquet file as Hugging Face `datasets` writes images: columns `image` {bytes, path} and `label`.

    Args:
        path: of the file.
        classes: names of the classes; None = there is no column `label`.

    Raises:
        MissingExtra: pyarrow is not installed.
    """

    def __init__(self, path: Path, classes: Sequence[str] | None) -> None:
        arrow = self._arrow = _arrow()
        self._rows: list[dict[str, Any]] = []
        fields = [("image", arrow.struct([("bytes", arrow.binary()), ("path", arrow.string())]))]
        features: dict[str, Any] = {"image": {"_type": "Image"}}
        if classes is not None:
            fields.append(("label", arrow.int64()))
            features["label"] = {"names": list(classes), "_type": "ClassLabel"}
        said = {"huggingface": json.dumps({"info": {"features": features}})}
        self._schema = arrow.schema(fields, metadata=said)
        self._file = path.open("wb")
        self._writer = _parquet().ParquetWriter(self._file, self._schema, compression="none")

    def add(self, entry: Entry) -> None:
        """Write an image."""
        name = f"{entry.key}.{entry.packed.extension}"
        row: dict[str, Any] = {"image": {"bytes": entry.packed.data, "path": name}}
        if "label" in self._schema.names:
            row["label"] = entry.label
        self._rows.append(row)
        if len(self._rows) == ROWS:
            self._write()

    def close(self) -> None:
        """Write the rest."""
        if self._rows:
            self._write()
        self._writer.close()
        _flushed(self._file)

    def _write(self) -> None:
        self._writer.write_table(self._arrow.Table.from_pylist(self._rows, schema=self._schema))
        self._rows = []


def check_format(form: str) -> None:
    """Refuse a format whose library is missing.

    Raises:
        MissingExtra: pyarrow is not installed.
    """
    if form == "parquet":
        _arrow()


def writer(form: str, path: Path, classes: Sequence[str] | None) -> ShardWriter:
    """Return a writer of a shard."""
    return TarShard(path) if form == "tar" else ParquetShard(path, classes)


def verify(form: str, path: Path, name: str, expected: Sequence[tuple[str, str, int | None]]) -> None:
    """Read a shard back, and compare every image.

    Args:
        form: "tar" or "parquet".
        path: of the file.
        name: what it is going to be called.
        expected: name and digest of each image, and the number of its class.

    Raises:
        RunFailure: something is not as it was written.
    """
    try:
        found = list(_in_tar(path) if form == "tar" else _in_parquet(path))
    except (OSError, ValueError, tarfile.TarError) as error:
        raise RunFailure(f"{shown(name)} cannot be read back: {error}: is the disk sound? Run it again") from error
    if found != list(expected):
        wrong = next((one for one, other in zip(expected, found, strict=False) if one != other), ("its end",))
        raise RunFailure(f"{shown(name)} is not as it was written, from {wrong[0]} on: is the disk sound? Run it again")


def _in_tar(path: Path) -> Iterator[tuple[str, str, int | None]]:
    """Yield the images of a tar file with their classes."""
    last: tuple[str, str] | None = None
    with tarfile.open(path, "r:") as tar:
        for info in tar:
            file = tar.extractfile(info)
            data = file.read() if file is not None else b""
            if info.name.endswith(".cls") and last is not None:
                yield (*last, int(data))
                last = None
            else:
                if last is not None:
                    yield (*last, None)
                last = info.name, digest_of(data)
    if last is not None:
        yield (*last, None)


def _in_parquet(path: Path) -> Iterator[tuple[str, str, int | None]]:
    """Yield the images of a parquet file with their classes."""
    with _parquet().ParquetFile(path) as file:
        for batch in file.iter_batches(batch_size=ROWS):
            for row in batch.to_pylist():
                yield row["image"]["path"], digest_of(row["image"]["bytes"]), row.get("label")


def _flushed(file: Any) -> None:
    file.flush()
    os.fsync(file.fileno())
    file.close()


def _arrow() -> Any:
    try:
        return importlib.import_module("pyarrow")
    except ImportError as error:
        raise MissingExtra("pyarrow", "data") from error


def _parquet() -> Any:
    return importlib.import_module("pyarrow.parquet")
