"""What a person reads while a command runs: one rich console on stderr, so that stdout stays free for results.

A remark that cannot be written (a closed pipe, a terminal that is gone, a full disk) is lost; it never ends a run.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, cast

from rich.console import Console, RenderableType
from rich.text import Text


@contextmanager
def _unheard() -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError):  # a stream that is closed raises ValueError, as does text it cannot encode
        return


class Remarks(io.TextIOBase):
    """A stream to what `sys.stderr` is at the moment; failures to write are ignored."""

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """Return the encoding of stderr."""
        return getattr(self._stream(), "encoding", None) or "utf-8"

    def write(self, text: str) -> int:
        """Write, or not."""
        with _unheard():
            stream = self._stream()
            if stream is not None:
                stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Flush, or not."""
        with _unheard():
            stream = self._stream()
            if stream is not None:
                stream.flush()

    def isatty(self) -> bool:
        """Return whether stderr is a terminal."""
        stream = self._stream()
        try:
            return stream is not None and stream.isatty()
        except (OSError, ValueError):
            return False

    def fileno(self) -> int:
        """Return the descriptor of stderr.

        Raises:
            OSError: it has none.
        """
        stream = self._stream()
        if stream is None:
            raise io.UnsupportedOperation("fileno")
        return stream.fileno()

    def __del__(self) -> None:
        """Leave stderr open: it is not this object's, and at the interpreter's end nothing is left to flush it with."""

    @staticmethod
    def _stream() -> IO[str] | None:
        """Return stderr; behind a bar of rich, which puts a stream of its own in its place, the one behind it."""
        return getattr(sys.stderr, "rich_proxied_file", sys.stderr)


console = Console(file=cast("IO[str]", Remarks()), markup=False, emoji=False)


def be_quiet() -> None:
    """Keep what is said from now on to memory, for a process that is not the first of its run."""
    console.file = io.StringIO()


def write_to(path: Path) -> None:
    """Write what was kept, and what is said from now on, to the end of a file; where that fails, it is lost."""
    kept = console.file
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a", encoding="utf-8", errors="backslashreplace", buffering=1)
    except OSError:
        return
    console.file = file
    if isinstance(kept, io.StringIO):
        with _unheard():
            file.write(kept.getvalue())


_remarks = True


@contextmanager
def only_warnings(yes: bool = True) -> Iterator[None]:
    """Inside, if `yes`, remarks and tables are not printed; warnings and errors are."""
    global _remarks  # noqa: PLW0603  (it is the process's)
    before, _remarks = _remarks, _remarks and not yes
    try:
        yield
    finally:
        _remarks = before


def has_remarks() -> bool:
    """Return whether remarks are printed."""
    return _remarks


def show(table: RenderableType) -> None:
    """Print a table, or nothing where remarks are not wanted."""
    if _remarks:
        console.print(table)


def info(message: str) -> None:
    """Print one line, as it is: no markup, no wrapping."""
    if not _remarks:
        return
    console.print(Text(message), soft_wrap=True)


def warn(message: str) -> None:
    """Print one line that starts with `warning:`."""
    console.print(Text.assemble(("warning:", "bold yellow"), " ", message), soft_wrap=True)


def error(message: str) -> None:
    """Print one line that starts with `error:`."""
    console.print(Text.assemble(("error:", "bold red"), " ", message), soft_wrap=True)
