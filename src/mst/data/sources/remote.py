"""Shards on other machines, `s3://`, `gs://`, `https://`, through fsspec: whole files, fetched into a bounded cache."""

from __future__ import annotations

import os
import posixpath
import socket
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, cast

from mst.data.background import BackgroundThreads
from mst.data.files.kinds import extension
from mst.data.files.ranges import RangedFile
from mst.data.files.tar_listing import MOST_BYTES, beside
from mst.data.sources.places import SHARDS, expanded, has_braces
from mst.data.sources.shard_cache import ATTEMPTS, FIRST_WAIT, ShardCache, Wanted, persistently
from mst.errors import MissingExtra, MstError, UsageError
from mst.runtime.names import shown

EXTRAS = {"s3": ("s3fs", "s3"), "gs": ("gcsfs", "gs"), "http": ("aiohttp", "data"), "https": ("aiohttp", "data")}
"""What each kind of address needs besides fsspec: package and extra."""
SILENCE = 60.0
"""Seconds without a byte after which an attempt counts as failed."""
GONE, REFUSED = {404, 410}, {401, 403}
"""Answers of a web server after which it is not asked again."""
PARTIAL = 206
"""Status of a web server's answer to a request for a range."""
SMALL, PIECES, LARGEST_PIECE = 1 << 20, 16, 1 << 22
"""Bytes of a file that is not read by pieces; of others, requests for pieces before it is fetched; bytes of one."""
AT_ONCE = 4
"""Files that a process fetches at a time, ahead of their use."""


@dataclass(frozen=True)
class RemoteShard:
    """A file on another machine; its copy is in the cache while it is used.

    Attributes:
        wanted: the file.
        cache: of its copy.
        members: the list of its members beside it; None = there is none.
    """

    wanted: Wanted
    cache: ShardCache
    members: Wanted | None = None

    @property
    def name(self) -> str:
        """Its address."""
        return self.wanted.address

    def open(self) -> int:
        """Return a descriptor of its copy."""
        return self.cache.open(self.wanted, fetch)

    def kept(self) -> None:
        """Keep none open: a copy must go when room is needed, and be known for used."""
        return

    def headers(self) -> BinaryIO:
        """Return its copy, or what asks for a few places of it; where many are wanted, it is fetched then."""
        return cast("BinaryIO", RangedFile(self.wanted.size, partial(ask, self.wanted), self._copy, self._in_one()))

    def listing(self) -> bytes | None:
        """Return the list of its members that lies beside it; None = there is none."""
        return None if self.members is None or self.members.size > MOST_BYTES else _content(self.members)

    def piece(self, start: int, size: int) -> bytes | None:
        """Return bytes of it, of a few requests before it is fetched: samples of many files need not all of them."""
        key = os.getpid(), self.wanted.key
        if size > LARGEST_PIECE or _asked[key] >= PIECES or key in _coming or self._in_one():
            return None
        _asked[key] += 1
        return ask(self.wanted, start, start + size)

    def settled(self) -> bool:
        """Return whether the store tells a mark of its content."""
        return bool(self.wanted.version)

    def _copy(self) -> BinaryIO:
        with _turn():
            return os.fdopen(self.open(), "rb")

    def _in_one(self) -> bool:
        """Return whether it is small, or here, or on its way."""
        return self.wanted.size <= SMALL or self.cache.coming(self.wanted)

    def path(self) -> Path:
        """Return where its copy is; it may be deleted when room is needed."""
        os.close(self.open())
        return self.cache.path(self.wanted)

    def stamp(self) -> tuple[int | str, ...]:
        """Return its size and the store's mark of its content."""
        return self.wanted.size, self.wanted.version

    def local(self) -> Path | None:
        """Return nothing: it is no file of the user's on this machine."""
        return None

    def fetch_soon(self) -> None:
        """Fetch it in a thread, if it is not here."""
        if not self.cache.path(self.wanted).exists():
            _coming.add((os.getpid(), self.wanted.key))
            _ahead().submit(_quietly, self)


def remote_shards(text: str, cache: ShardCache) -> list[RemoteShard]:
    """Return the shards that an address or a pattern of addresses names.

    Raises:
        UsageError: an address of another kind, no such file, or one that cannot be reached.
        MissingExtra: what this kind of address needs.
    """
    system = filesystem(text)
    names = expanded(text) if has_braces(text) else [text]
    pattern = "*" in text and not text.startswith("http")
    if len(names) == 1 and (pattern or extension(os.fsencode(text.partition("?")[0])) not in SHARDS):
        names = _in_folder(system, text)
    found = _sizes(system, names, text)
    missing = [name for name in names if name not in found]
    if missing:
        raise UsageError(
            f"{shown(text)}: {len(missing)} of {len(names)} files do not exist, the first: {shown(missing[0])}"
        )
    lists = found if not text.startswith("http") else _lists(system, names)
    return [RemoteShard(found[name], cache, lists.get(beside(name))) for name in names]


def _lists(system: Any, names: Sequence[str]) -> dict[str, Wanted]:
    """Return the lists of members that a web server has beside files; if there is none of the first, none is sought."""
    found: dict[str, Wanted] = {}
    for address in map(beside, names):
        try:
            row = system.info(address)
        except Exception:  # whatever a server answers: there is none, and headers are read
            if not found:
                break
            continue
        if row.get("size"):
            found[address] = Wanted(address, int(row["size"]), "")
    return found


def _in_folder(system: Any, text: str) -> list[str]:
    """Return the shards that lie in a folder, or that a pattern of a store names.

    Raises:
        UsageError: there are none.
    """
    scheme = text.partition("://")[0]
    if scheme in {"http", "https"}:
        raise UsageError(f"{shown(text)} is no shard (.tar, .parquet): give its address, or a pattern of braces")
    pattern = text if "*" in text else text.rstrip("/") + "/**"
    found = _tried(text, lambda: system.glob(pattern))
    names = sorted(name for name in found if extension(os.fsencode(name)) in SHARDS)
    if not names:
        raise UsageError(f"{shown(text)} holds no shards (.tar, .parquet)")
    return [f"{scheme}://{name}" for name in names]


def _sizes(system: Any, names: Sequence[str], text: str) -> dict[str, Wanted]:
    """Return size and mark of the files that are there."""
    found: dict[str, Wanted] = {}
    if not text.startswith("http"):
        for folder in dict.fromkeys(map(posixpath.dirname, names)):
            for row in _tried(text, lambda folder=folder: system.ls(folder, detail=True, refresh=True)):
                address = f"{text.partition('://')[0]}://{row['name']}"
                found[address] = Wanted(
                    address, int(row.get("size") or 0), str(row.get("ETag") or row.get("etag") or "")
                )
        return found
    for name in names:
        row = _tried(name, lambda name=name: system.info(name))
        if row.get("size") is None:
            raise UsageError(
                f"{shown(name)}: the server does not tell its size, so that nobody sees if it is cut short"
            )
        found[name] = Wanted(name, int(row["size"]), str(row.get("ETag") or row.get("Last-Modified") or ""))
    return found


def _tried(text: str, ask: Any) -> Any:
    """Ask a store, several times.

    Raises:
        UsageError: there is no such place, or it cannot be reached.
    """
    for attempt in range(ATTEMPTS):
        try:
            return ask()
        except PermissionError as error:
            raise UsageError(f"{shown(text)}: the store refuses access: {_said(error)}") from error
        except Exception as error:  # whatever a network and its libraries raise
            status = getattr(error.__cause__, "status", None)  # over HTTP every failure is called a missing file
            if isinstance(error, FileNotFoundError) and (error.__cause__ is None or status in GONE):
                raise UsageError(f"{shown(text)} does not exist") from error
            if status in REFUSED:
                raise UsageError(f"{shown(text)}: the server refuses access (status {status})") from error
            if _host_is_unknown(error):
                raise UsageError(f"{shown(text)}: no machine of that name is known: {_said(error)}") from error
            if attempt == ATTEMPTS - 1:
                raise UsageError(f"{shown(text)} cannot be reached, {ATTEMPTS} times: {_said(error)}") from error
        time.sleep(FIRST_WAIT * 2**attempt)
    raise AssertionError


def _host_is_unknown(error: BaseException | None) -> bool:
    """Whether a name server says that there is no such machine; that it cannot be asked now is another answer."""
    while error is not None:
        below = getattr(error, "os_error", error)  # aiohttp keeps the system's error there
        if isinstance(below, socket.gaierror) and below.errno == socket.EAI_NONAME:
            return True
        error = error.__cause__
    return False


def _said(error: Exception) -> str:
    """Return an error's words; of one that hides another, those of the other."""
    error = error.__cause__ if isinstance(error.__cause__, Exception) else error
    return " ".join(str(error).split())[:200] or type(error).__name__


_systems: dict[tuple[int, str], Any] = {}


def filesystem(address: str) -> Any:
    """Return fsspec's file system for an address; each process has its own, since its threads do not survive a fork.

    Raises:
        UsageError: another kind of address.
        MissingExtra: what it needs is not installed.
    """
    scheme = address.partition("://")[0].lower()
    if scheme not in EXTRAS:
        raise UsageError(f"{shown(address)}: addresses begin with s3://, gs:// or https://")
    key = os.getpid(), scheme
    if key not in _systems:
        package, extra = EXTRAS[scheme]
        try:
            import fsspec
        except ImportError:
            raise MissingExtra("fsspec", "data") from None
        try:
            _systems[key] = fsspec.filesystem(scheme, skip_instance_cache=True, **_patience(scheme))
        except (ImportError, ValueError):
            raise MissingExtra(package, extra) from None
    return _systems[key]


def _patience(scheme: str) -> dict[str, Any]:
    """Return the limits of time of a file system."""
    if scheme == "s3":
        return {
            "config_kwargs": {"connect_timeout": SILENCE / 2, "read_timeout": SILENCE, "retries": {"max_attempts": 1}}
        }
    if scheme in {"http", "https"}:
        import aiohttp

        return {
            "client_kwargs": {"timeout": aiohttp.ClientTimeout(total=None, sock_connect=SILENCE / 2, sock_read=SILENCE)}
        }
    return {}


def fetch(wanted: Wanted, place: Path) -> None:
    """Write a file of another machine to a place; raises whatever the network does."""
    filesystem(wanted.address).get_file(wanted.address, os.fspath(place))


def ask(wanted: Wanted, start: int, end: int) -> bytes | None:
    """Return bytes of a file of another machine; None = its server has no ranges.

    Raises:
        Unreachable: they cannot be had.
    """
    found: list[bytes | None] = [b""]

    def attempt() -> str:
        found[0] = _range(wanted.address, start, end)
        missing = 0 if found[0] is None else end - start - len(found[0])
        return f"{end - start - missing} bytes came, {end - start} were expected" if missing else ""

    persistently(wanted.address, attempt)
    return found[0]


def _range(address: str, start: int, end: int) -> bytes | None:
    system = filesystem(address)
    if not address.startswith("http"):
        data = bytes(system.cat_file(address, start=start, end=end))
        return data if len(data) <= end - start else None  # a store that sends the whole file
    from fsspec.asyn import sync

    found: bytes | None = sync(system.loop, _http_range, system, address, start, end)
    return found


async def _http_range(system: Any, address: str, start: int, end: int) -> bytes | None:
    """Ask a web server; one without ranges would send the whole file, of which nothing is read."""
    session = await system.set_session()
    headers = {"Range": f"bytes={start}-{end - 1}", "Accept-Encoding": "identity"}
    async with session.get(system.encode_url(address), headers=headers) as answer:
        answer.raise_for_status()
        return await answer.read() if answer.status == PARTIAL else None


def content_of(address: str, most: int) -> bytes:
    """Return the bytes of a small file of another machine.

    Raises:
        UsageError: there is none, it cannot be reached, or has more bytes than `most`.
        Unreachable: it cannot be had.
    """
    system = filesystem(address)
    wanted = _sizes(system, [address], address).get(address)
    if wanted is None:
        raise UsageError(f"{shown(address)} does not exist")
    if wanted.size > most:
        raise UsageError(f"{shown(address)} has {wanted.size} bytes, at most {most} are read")
    return _content(wanted)


def _content(wanted: Wanted) -> bytes:
    found = [b""]

    def attempt() -> str:
        found[0] = bytes(filesystem(wanted.address).cat_file(wanted.address))
        return "" if len(found[0]) == wanted.size else f"{len(found[0])} bytes came, {wanted.size} were expected"

    persistently(wanted.address, attempt)
    return found[0]


_asked: Counter[tuple[int, str]] = Counter()
"""Requests for pieces of a file, by process."""
_coming: set[tuple[int, str]] = set()
"""Files that are going to be fetched, by process."""
_threads: dict[int, BackgroundThreads] = {}
_turns: dict[int, threading.Semaphore] = {}
_starting = threading.Lock()


def _ahead() -> BackgroundThreads:
    """Return this process's threads that fetch ahead."""
    process = os.getpid()
    with _starting:
        if process not in _threads:
            _threads[process] = BackgroundThreads("mst-fetch", AT_ONCE)
        return _threads[process]


def _turn() -> threading.Semaphore:
    """Return what lets few threads of this process fetch whole files at a time: each takes room before it is there."""
    process = os.getpid()
    with _starting:
        return _turns.setdefault(process, threading.Semaphore(AT_ONCE))


def _quietly(shard: RemoteShard) -> None:
    """Fetch a shard; who needs it says what went wrong."""
    try:
        shard.cache.bring(shard.wanted, fetch)
    except (MstError, OSError):
        return
    finally:
        _coming.discard((os.getpid(), shard.wanted.key))
