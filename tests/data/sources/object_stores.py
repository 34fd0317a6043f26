"""Servers on the loopback: files over HTTP that fail, stall or stop half-way as told, and an object store (moto)."""

from __future__ import annotations

import re
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen


@dataclass
class Faults:
    """What a server does to shards that are asked for, whole or in pieces: `plan` is used up from its beginning.

    `fail` = status 503; `cut` = half of the bytes, then the connection ends; `slow` = a second's wait; `stall` = half
    of the bytes, then nothing for three seconds; `` = nothing.
    `asked` counts whole files, `pieces` answers to requests for ranges, which a server without `ranges` takes for whole
    ones; `sent` counts the bytes of both.
    """

    plan: list[str] = field(default_factory=list)
    asked: Counter[str] = field(default_factory=Counter)
    pieces: Counter[str] = field(default_factory=Counter)
    sent: Counter[str] = field(default_factory=Counter)
    ranges: bool = True
    lock: threading.Lock = field(default_factory=threading.Lock)

    def next(self, path: str, status: int, size: int) -> str:
        with self.lock:
            (self.pieces if status == 206 else self.asked)[path] += 1
            self.sent[path] += size
            return self.plan.pop(0) if self.plan else ""


def handler(faults: Faults, folder: Path | None, behind: str) -> type[BaseHTTPRequestHandler]:
    """Serve a folder, or pass everything on to another server."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self) -> tuple[int, dict[str, str], bytes]:
            if folder is not None:
                path = folder / self.path.lstrip("/")
                data = path.read_bytes() if path.is_file() else b""
                mark = {"ETag": f'"{hash(data):x}-x"'}
                wanted = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range") or "")
                if wanted and faults.ranges and path.is_file():
                    return 206, mark, data[int(wanted[1]) : int(wanted[2]) + 1]
                return (200 if path.is_file() else 404), mark, data
            length = int(self.headers.get("Content-Length") or 0)
            body = self.rfile.read(length) if length else None
            request = Request(behind + self.path, data=body, headers=dict(self.headers), method=self.command)
            try:
                with urlopen(request) as got:
                    return got.status, dict(got.headers), got.read()
            except HTTPError as error:
                return error.code, dict(error.headers), error.read()

        def do_GET(self) -> None:
            status, headers, data = self.answer()
            content = "/storage/v1/" not in self.path or "alt=media" in self.path  # of Google's, not what it says of it
            named = self.path.partition("?")[0].endswith(".tar") and content
            whole = self.command == "GET" and status in {200, 206} and named
            fault = faults.next(self.path.partition("?")[0], status, len(data)) if whole else ""
            if fault == "slow":
                time.sleep(1)
            if fault == "fail":
                status, data = 503, b"<Error><Code>SlowDown</Code><Message>try later</Message></Error>"
            self.send_response(status)
            kept = {"etag", "last-modified", "content-type", "content-range", "accept-ranges"}
            for name, value in headers.items():
                if name.lower() in kept or name.lower().startswith("x-amz"):
                    self.send_header(name, value)
            size = headers.get("Content-Length") if self.command == "HEAD" and folder is None else str(len(data))
            self.send_header("Content-Length", size or "0")
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data[: len(data) // 2] if fault in {"cut", "stall"} else data)
            if fault == "stall":
                self.wfile.flush()
                time.sleep(3)
            if fault in {"cut", "stall"}:
                self.close_connection = True

        do_HEAD = do_PUT = do_POST = do_DELETE = do_GET  # noqa: N815

        def log_message(self, *_: object) -> None:
            return

    return Handler


@contextmanager
def served(faults: Faults, folder: Path | None = None, behind: str = "") -> Iterator[str]:
    """Run a server; its address."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler(faults, folder, behind))
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
