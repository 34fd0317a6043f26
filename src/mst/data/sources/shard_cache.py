"""Files of other machines on the local disk: a bounded folder that the processes of a host share.

A file is fetched under another name, its size and (where the store says it) its MD5 are checked, and it is renamed.
Locks of the system (`flock`) keep two processes from fetching the same file; a killed process holds none, and what it
had fetched half is deleted. The file that was opened longest ago goes first when room is needed; who has it open keeps
it.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from mst.config.schema import SIZE, bytes_of
from mst.data.files.folders import cache_folder
from mst.errors import DataError, Unreachable, UsageError
from mst.paths import user_path
from mst.runtime import logging
from mst.runtime.names import shown

ATTEMPTS = 6
"""Times that a file is asked for."""
FIRST_WAIT = 0.5
"""Seconds before the second time; each further wait is twice as long."""
PART, LOCK = ".part", ".lock"
MD5 = re.compile(r"[0-9a-f]{32}")


FOLDER, ROOM = "MST_SHARD_CACHE", "MST_SHARD_CACHE_SIZE"
"""Variables of the environment that set folder and room for commands without options for them."""
USUAL_ROOM = "50GB"


@dataclass(frozen=True)
class Wanted:
    """A file of another machine.

    Attributes:
        address: of the file.
        size: its bytes.
        version: the store's mark of its content (ETag); empty = it gives none.
    """

    address: str
    size: int
    version: str

    @property
    def key(self) -> str:
        """The name of its copy, without an extension."""
        text = f"{self.address}\0{self.size}\0{self.version}"
        return hashlib.blake2b(text.encode("utf-8", "surrogateescape"), digest_size=16).hexdigest()


@dataclass(frozen=True)
class ShardCache:
    """A folder of fetched files.

    Attributes:
        folder: made when it is needed.
        room: bytes that its files may take.
        option, folder_option: what sets the room and the folder, for messages.
    """

    folder: Path
    room: int
    option: str = "--data.shard-cache-size"
    folder_option: str = "--data.shard-cache"

    def path(self, wanted: Wanted) -> Path:
        """Return where the copy of a file is, or will be."""
        return self.folder / (wanted.key + os.path.splitext(wanted.address.partition("?")[0])[1])

    def coming(self, wanted: Wanted) -> bool:
        """Return whether a file is here, or a process fetches it at the moment."""
        place = self.path(wanted)
        return place.exists() or self._is_locked(place.with_name(place.name + LOCK))

    def open(self, wanted: Wanted, fetch: Callable[[Wanted, Path], None]) -> int:
        """Return a descriptor of a file, which is fetched if it is not here.

        Args:
            wanted: the file.
            fetch: writes a file; raises whatever a network does.

        Raises:
            Unreachable: it cannot be had, after `ATTEMPTS` times.
            DataError: it is larger than the room.
        """
        place = self.path(wanted)
        for _ in range(ATTEMPTS):
            try:
                descriptor = os.open(place, os.O_RDONLY | os.O_CLOEXEC)
            except (FileNotFoundError, NotADirectoryError):
                self.bring(wanted, fetch)  # another process may need the room at once: then again
                continue
            with suppress(OSError):  # another user's file
                os.utime(descriptor)
            return descriptor
        raise Unreachable(
            f"{shown(wanted.address)} is thrown out of {self.folder} as soon as it is fetched: give {self.option} more "
            f"than {_short(self.room)}"
        )

    def bring(self, wanted: Wanted, fetch: Callable[[Wanted, Path], None]) -> None:
        """Fetch a file if it is not here; arguments and errors as of `open`."""
        if wanted.size > self.room:
            raise DataError(
                f"{shown(wanted.address)} has {_short(wanted.size)}, {self.option} is {_short(self.room)}: give more"
            )
        place = self.path(wanted)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with self._locked(place.with_name(place.name + LOCK)):
                if not place.exists():
                    self._fetch(wanted, place, fetch)
        except OSError as error:
            reason = "it is full" if error.errno in {errno.ENOSPC, errno.EDQUOT} else error.strerror or str(error)
            raise Unreachable(
                f"{self.folder} cannot keep {shown(wanted.address)} ({_short(wanted.size)}): {reason}: make room, name "
                f"another folder with {self.folder_option}, or lower {self.option}"
            ) from error

    def _fetch(self, wanted: Wanted, place: Path, fetch: Callable[[Wanted, Path], None]) -> None:
        """Fetch a file under another name, check it and rename it."""
        part = place.with_name(place.name + PART)
        with self._locked(self.folder / "room.lock"):
            part.unlink(missing_ok=True)  # of a process that was killed
            self._make_room(wanted.size)
            with part.open("wb") as file:
                if wanted.size:
                    os.posix_fallocate(file.fileno(), 0, wanted.size)  # a full disk shows now
        try:
            self._attempts(wanted, part, fetch)
            os.replace(part, place)
        finally:
            part.unlink(missing_ok=True)
        with self._locked(self.folder / "room.lock"):
            self._make_room(0)  # what others fetched meanwhile

    def _attempts(self, wanted: Wanted, part: Path, fetch: Callable[[Wanted, Path], None]) -> None:
        """Fetch and check, again and again.

        Raises:
            Unreachable: it did not work.
            OSError: of the local disk.
        """

        def attempt() -> str:
            fetch(wanted, part)
            return self._problem(wanted, part)

        persistently(wanted.address, attempt)

    def _problem(self, wanted: Wanted, part: Path) -> str:
        """Return what is wrong with a fetched file; empty = nothing."""
        size = part.stat().st_size
        if size != wanted.size:
            return f"{size} bytes came, {wanted.size} were expected"
        mark = wanted.version.strip('"').lower()
        if MD5.fullmatch(mark):  # a part-wise upload has another mark, with a hyphen
            with part.open("rb") as file:
                found = hashlib.file_digest(file, "md5").hexdigest()
            if found != mark:
                return "its MD5 is not the one that the store tells"
        return ""

    def _make_room(self, size: int) -> None:
        """Delete the files that were opened longest ago, until there is room."""
        found: list[tuple[float, int, Path]] = []
        with os.scandir(self.folder) as entries:
            for entry in entries:
                with suppress(FileNotFoundError):
                    if entry.name.endswith(PART) and not self._is_locked(Path(entry.path.removesuffix(PART) + LOCK)):
                        os.unlink(entry.path)  # of a process that was killed
                    elif not entry.name.endswith(LOCK):
                        state = entry.stat()
                        found.append((state.st_mtime, state.st_size, Path(entry.path)))
        used = sum(one for _, one, _ in found)
        for _, one, path in sorted(found):
            if used + size <= self.room:
                break
            if path.suffix == PART:
                continue
            path.unlink(missing_ok=True)
            path.with_name(path.name + LOCK).unlink(missing_ok=True)
            used -= one

    @staticmethod
    def _is_locked(path: Path) -> bool:
        try:
            descriptor = os.open(path, os.O_RDWR)
        except FileNotFoundError:
            return False
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return True
        finally:
            os.close(descriptor)
        return False

    @contextmanager
    def _locked(self, path: Path) -> Iterator[None]:
        """Hold a lock file; one that was deleted while this process waited is locked again under its name."""
        while True:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX)
                with suppress(FileNotFoundError):
                    if os.path.samestat(os.fstat(descriptor), os.stat(path)):
                        yield
                        return
            finally:
                os.close(descriptor)


def persistently(address: str, attempt: Callable[[], str]) -> None:
    """Ask another machine again and again, with growing waits.

    Args:
        address: of what is asked for.
        attempt: asks, and returns what is wrong with the answer; empty = nothing.

    Raises:
        Unreachable: it did not work.
        OSError: of the local disk.
    """
    problem = ""
    for number in range(ATTEMPTS):
        if number:
            time.sleep(FIRST_WAIT * 2 ** (number - 1))
        try:
            problem = attempt()
        except Exception as error:  # whatever a network and its libraries raise
            if isinstance(error, OSError) and error.errno in {errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS}:
                raise
            silent = "it fell silent" if isinstance(error, TimeoutError) else type(error).__name__
            problem = " ".join(str(error).split())[:200] or silent
        if not problem:
            return
        if number == 0:
            logging.warn(f"{shown(address)}: {problem}: trying again")
    raise Unreachable(f"{shown(address)} cannot be fetched, {ATTEMPTS} times: {problem}")


def usual_cache() -> ShardCache:
    """Return the cache of commands that have no options for it.

    Raises:
        UsageError: the user has no home, or the room is no number of bytes.
    """
    said = os.environ.get(ROOM) or USUAL_ROOM
    if not re.fullmatch(SIZE, said):
        raise UsageError(f"{ROOM}={said}: a size such as 500MB or 2TB is expected")
    return ShardCache(usual_folder(FOLDER), bytes_of(said), ROOM, FOLDER)


def usual_folder(option: str) -> Path:
    """Return the folder of fetched shards where no option names one.

    Raises:
        UsageError: the user has no home.
    """
    if given := os.environ.get(FOLDER):
        return user_path(given)
    index = cache_folder()
    if index is None:
        raise UsageError(f"this user has no home folder for fetched shards: name a folder with {option}")
    return index.parent / "shards"


def _short(size: int) -> str:
    """Write a number of bytes."""
    for unit, one in (("TB", 10**12), ("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if size >= one:
            return f"{size / one:.3g} {unit}"
    return f"{size} bytes"
