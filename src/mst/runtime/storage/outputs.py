"""Files that a command writes into a user's folder: when it is repeated it replaces its own files and no others."""

from __future__ import annotations

import hashlib
import os
import re
import stat
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from mst.errors import RunFailure, UsageError
from mst.runtime.names import shown
from mst.runtime.storage.files import aside_of, check_folder, may_write, put_in_place, remove_asides, write_aside
from mst.runtime.storage.results import append_jsonl, read_jsonl

NOTES = ".mst-written.jsonl"
"""File in the folder: a line for each file that a command wrote there."""
ANY = re.compile(b"")
"""For `earlier`: every file without a note is the command's own, in a folder that is only for it."""


class Outputs:
    """The files that a command writes into one folder.

    The command notes each file that it writes. A file is its own as long as it is as noted: of the same size and time,
    or of the same content (a copy). A file that was changed since, and every other file, belongs to the user.

    Args:
        folder: made with the first file.
        command: whose files these are, such as `predict segmentation`.
        flag: the option that named the folder or file, for the messages.
        earlier: pattern in files that older versions wrote without notes: they count as own files; None = none do.

    Raises:
        UsageError: no folder can be made there, or nothing can be written.
    """

    def __init__(self, folder: Path, command: str, flag: str, *, earlier: re.Pattern[bytes] | None = None) -> None:
        check_folder(folder, flag)
        self.folder, self._command, self._flag, self._earlier = folder, command, flag, earlier
        self._notes: dict[str, list[dict[str, Any]]] = {}
        for row in read_jsonl(folder / NOTES):
            if row.get("command") == command:
                self._notes.setdefault(str(row.get("name")), []).append(row)
        self._tidied: set[Path] = set()

    def check(self, names: Iterable[str | Path]) -> None:
        """Refuse, before the work, names of existing files that are not the command's own.

        Args:
            names: relative to the folder.

        Raises:
            UsageError: names the first.
        """
        for name in names:
            if not self._may_write(name):
                raise UsageError(f"{self._flag}: {self._foreign(name)}: move it away, or name another place")

    def check_numbered(self, pattern: str, limit: int) -> None:
        """Refuse existing files that may have the names of numbered ones, whose full names are not known yet.

        Args:
            pattern: regular expression of a whole name, its first group the number.
            limit: numbers are below it.

        Raises:
            UsageError: names the first.
        """
        found = [(re.fullmatch(pattern, name), name) for name in self._present()]
        self.check(sorted(name for match, name in found if match and int(match[1]) < limit))

    def write(self, name: str | Path, content: bytes, *, flush: bool = True, grows: bool = False) -> None:
        """Write a file under another name, then rename it, so that a kill leaves the old file or the new one.

        Args:
            name: relative to the folder; sub-folders are made.
            content: of the file.
            flush: to disk, before the next one is written.
            grows: rows will be appended to it; it stays the command's own.

        Raises:
            RunFailure: the disk refused, or a file of this name that is not the command's own appeared meanwhile.
        """
        self._write([(name, content)], flush=flush, grows=grows)

    def write_together(self, files: Sequence[tuple[str | Path, bytes]]) -> None:
        """Write files that mean something together only, see `mst.runtime.storage.files.write_together`.

        Raises:
            RunFailure: as `write`.
        """
        self._write(files, flush=True, grows=False)

    def remove(self, name: str | Path) -> None:
        """Remove a file of the command's own, if it is there; others stay."""
        if may_write() and str(name) in self._notes and self._may_write(name):
            with suppress(OSError):
                (self.folder / name).unlink(missing_ok=True)

    def _write(self, files: Sequence[tuple[str | Path, bytes]], *, flush: bool, grows: bool) -> None:
        if not may_write():
            return
        for name, _ in files:
            if not self._may_write(name):
                raise RunFailure(f"cannot write {shown(self.folder / name)}: {self._foreign(name)}")
        targets = [self.folder / name for name, _ in files]
        target = targets[0]
        try:
            for target, (name, content) in zip(targets, files, strict=True):
                target.parent.mkdir(parents=True, exist_ok=True)
                if target.parent not in self._tidied:
                    remove_asides(target.parent)
                    self._tidied.add(target.parent)
                write_aside(target, content, flush=flush)
                self._note(str(name), content, aside_of(target).stat().st_mtime_ns, grows)
            put_in_place(targets)
        except OSError as error:
            raise RunFailure(f"cannot write {shown(target)}: {error.strerror or error}") from error
        finally:
            for written in targets:
                with suppress(OSError):
                    aside_of(written).unlink(missing_ok=True)

    def _note(self, name: str, content: bytes, time: int, grows: bool) -> None:
        """Note a file before it is renamed: a kill in between leaves the note before, and one that fits no file."""
        note: dict[str, Any] = {"name": name, "command": self._command, "size": len(content), "time": time}
        note |= {"digest": _digest(content), "grows": grows}
        append_jsonl(self.folder / NOTES, note)
        self._notes.setdefault(name, []).append(note)

    def _present(self) -> list[str]:
        """Return the names of what lies in the folder."""
        try:
            return os.listdir(self.folder)
        except OSError:
            return []

    def _foreign(self, name: str | Path) -> str:
        state = "was changed since" if str(name) in self._notes else f"was not written by mst {self._command}"
        return f"{shown(self.folder / name)} is there and {state}"

    def _may_write(self, name: str | Path) -> bool:
        """Whether nothing is there, or a file of the command's own."""
        path, notes = self.folder / name, self._notes.get(str(name))
        if not may_write():  # the process that does has looked
            return True
        try:
            status = path.lstat()
            if not stat.S_ISREG(status.st_mode):
                return False
            if notes is None:
                return self._earlier is not None and self._earlier.search(path.read_bytes()) is not None
            return any(_is_as_noted(path, status, note) for note in reversed(notes))
        except (FileNotFoundError, NotADirectoryError):
            return True
        except OSError:
            return False


def _is_as_noted(path: Path, status: os.stat_result, note: dict[str, Any]) -> bool:
    """Whether a file is the one that was noted: by size and time, else by its content."""
    size, grows = note.get("size"), note.get("grows") is True
    if status.st_size == size and status.st_mtime_ns == note.get("time"):
        return True
    if type(size) is not int or not (status.st_size == size or (grows and status.st_size > size > 0)):
        return False
    with path.open("rb") as file:
        return _digest(file.read(size)) == note.get("digest")


def _digest(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=16).hexdigest()
