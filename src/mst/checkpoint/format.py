"""One checkpoint as a folder: a file per named part, and info.json with the size and SHA-256 of each.

Every file is read back with `weights_only=True`: a checkpoint holds tensors and plain values, never code.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

import torch

from mst.checkpoint.sharded import Unjoined, joined
from mst.errors import CheckpointError
from mst.runtime.storage.files import sync_folder

FORMAT_VERSION, SHARDED_FORMAT = 2, 3
"""Raised when a run of before could not go on as it would have: 2 draws masks and stochastic depth by position.
A checkpoint whose networks are in several parts has the second number: older versions cannot read it."""
INFO = "info.json"
PART = re.compile(r"\w+\.pt")
"""Name of a part's file."""
REASON = 200
"""Most characters that a message takes from torch."""


class Damaged(Exception):
    """This checkpoint cannot be used; the message says what is wrong with which file."""


class OtherFormat(Damaged):
    """It is sound, but another version of this package wrote it."""


@dataclass(frozen=True)
class Checkpoint:
    """One checkpoint in memory.

    Attributes:
        path: its folder.
        step: optimizer steps done.
        parts: state dictionaries by name, tensors on the CPU.
        info: what was saved beside them (configuration, versions), as JSON gave it back.
    """

    path: Path
    step: int
    parts: dict[str, dict[str, Any]]
    info: dict[str, Any]


class _HashedFile(io.RawIOBase):
    """A file being written whose size and SHA-256 are known at its end without reading it again."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("wb")
        self._digest = hashlib.sha256()
        self.size = 0
        self.failure: OSError | None = None

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        view = memoryview(data)
        try:
            self._file.write(view)
        except OSError as error:  # torch.save reports it as an error of its own
            self.failure = error
            raise
        self._digest.update(view)
        self.size += view.nbytes
        return view.nbytes

    def finish(self) -> dict[str, Any]:
        """Flush to disk and return the file's size and hash."""
        self._file.flush()
        os.fsync(self._file.fileno())
        return {"size": self.size, "sha256": self._digest.hexdigest()}

    def close(self) -> None:
        """Close without raising: `finish` has flushed all that matters."""
        try:
            self._file.close()
        except OSError as error:
            self.failure = self.failure or error
        super().close()


def write_folder(folder: Path, step: int, parts: dict[str, dict[str, Any]], info: dict[str, Any]) -> None:
    """Write a checkpoint into the existing empty `folder` and flush it to disk.

    Raises:
        OSError: the disk refused.
    """
    write_info(folder, step, write_parts(folder, parts), info)


def write_parts(folder: Path, parts: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Write parts into `folder` and flush them to disk; return size and SHA-256 of each file by its name.

    Raises:
        OSError: the disk refused.
    """
    return {f"{name}.pt": _write_part(folder / f"{name}.pt", part) for name, part in parts.items()}


def write_info(
    folder: Path, step: int, files: dict[str, dict[str, Any]], info: dict[str, Any], *, version: int | None = None
) -> None:
    """Make a checkpoint of the files in `folder`, and flush it to disk; version None = that of whole tensors.

    Raises:
        OSError: the disk refused.
    """
    content = {"format": version or FORMAT_VERSION, "step": step, "files": files, "info": info}
    record = {**content, "sha256": _digest(content)}
    with (folder / INFO).open("w", encoding="utf-8") as file:
        file.write(json.dumps(record, indent=1))
        file.flush()
        os.fsync(file.fileno())
    sync_folder(folder)


def read_folder(folder: Path) -> Checkpoint:
    """Read a checkpoint whole.

    Raises:
        Damaged: a file is missing, short, changed or no checkpoint.
        CheckpointError: the system does not let it be read (permission, too many open files).
    """
    try:
        return _read_folder(folder)
    except OSError as error:
        raise CheckpointError(
            f"cannot read {error.filename or folder}: {error.strerror or error}; mend that: it may well be sound"
        ) from error


def _read_folder(folder: Path) -> Checkpoint:
    """See `read_folder`; raises OSError as it comes."""
    record = verified_info(folder)
    parts = {}
    for name in record["files"]:
        try:
            with warnings.catch_warnings(action="ignore"):
                part = torch.load(folder / name, map_location="cpu", weights_only=True)
        except (OSError, MemoryError):
            raise
        except Exception as error:  # whatever bytes that are no checkpoint raise
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise Damaged(f"{name} cannot be read: {reason[:REASON]}") from error
        if not isinstance(part, dict):
            raise Damaged(f"{name} holds {type(part).__name__} instead of values by name")
        parts[name.removesuffix(".pt")] = part
    try:
        parts = joined(parts)
    except Unjoined as error:
        raise Damaged(str(error)) from error
    done = parts.get("progress", {}).get("step", record["step"])
    if type(done) is not int or done != record["step"]:
        raise Damaged(f"progress.pt says another step than {INFO}, which says {record['step']}")
    return Checkpoint(path=folder, step=record["step"], parts=parts, info=record["info"])


def verified_info(folder: Path) -> dict[str, Any]:
    """Return info.json after checking the size and hash of every file it names, and its own.

    Raises:
        Damaged: as `read_folder`.
        OSError: the system does not let a file be read.
    """
    try:
        record = json.loads((folder / INFO).read_text(encoding="utf-8"))
    except OSError as error:
        raise _gone(INFO, error) from error
    except (ValueError, RecursionError) as error:
        raise Damaged(f"{INFO} is not valid JSON") from error
    content = {key: value for key, value in record.items() if key != "sha256"} if isinstance(record, dict) else {}
    if not content or record.get("sha256") != _digest(content):
        raise Damaged(f"{INFO} was changed after it was written")
    if content.get("format") not in {FORMAT_VERSION, SHARDED_FORMAT}:
        raise OtherFormat(
            f"it has format {content.get('format')}, this version of mst reads {FORMAT_VERSION}: finish the run with "
            "the version that began it, or start anew with --init FOLDER/backbone.safetensors"
        )
    _check_content(content)
    for name, expected in content["files"].items():
        _verify_file(folder / name, expected)
    return content


def _check_content(content: dict[str, Any]) -> None:
    """Refuse a record, sound by its digest, that `write_folder` cannot have written.

    Raises:
        Damaged: something is missing, of another kind, or names a file outside the folder.
    """
    files, step = content.get("files"), content.get("step")
    if type(step) is not int or step < 0:
        raise Damaged(f"{INFO} says step {step!r}: must be a whole number from 0")
    if not isinstance(files, dict) or not isinstance(content.get("info"), dict):
        raise Damaged(f"{INFO} lists no files, or no settings")
    for name, expected in files.items():
        known = isinstance(expected, dict) and type(expected.get("size")) is int
        if not PART.fullmatch(name) or not known or not isinstance(expected.get("sha256"), str):
            raise Damaged(f"{INFO} lists {name!r}, which is no part of a checkpoint")


def _write_part(path: Path, part: dict[str, Any]) -> dict[str, Any]:
    file = _HashedFile(path)
    try:
        torch.save(part, cast("IO[bytes]", file))
        return file.finish()
    except RuntimeError as error:
        if file.failure is not None:
            raise file.failure from error
        raise
    finally:
        file.close()


def _verify_file(path: Path, expected: dict[str, Any]) -> None:
    try:
        size = path.stat().st_size
        if size != expected["size"]:
            raise Damaged(f"{path.name} has {size} bytes instead of {expected['size']}")
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise _gone(path.name, error) from error
    if digest != expected["sha256"]:
        raise Damaged(f"{path.name} was changed after it was written (SHA-256 differs)")


def _gone(name: str, error: OSError) -> Exception:
    """Return what to raise: a file that is gone is damage, one that the system withholds may be sound."""
    if isinstance(error, FileNotFoundError | NotADirectoryError | IsADirectoryError):
        return Damaged(f"{name} cannot be read: {error.strerror}")
    return error


def _digest(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
