"""Results on stdout: one JSON object, or tables for a person."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from typing import Any

from rich.console import Console, RenderableType

from mst.runtime.storage.files import may_write
from mst.runtime.storage.results import plain_json

PIPE_WIDTH = 200
"""Columns of a table that does not go to a terminal."""


def emit_json(result: Mapping[str, Any]) -> None:
    """Write one JSON object and a newline."""
    _write(json.dumps(plain_json(result), indent=2, allow_nan=False) + "\n")


def emit(*parts: RenderableType) -> None:
    """Write text or tables."""
    width = None if sys.stdout.isatty() else PIPE_WIDTH
    console = Console(file=sys.stdout, highlight=False, markup=False, emoji=False, width=width)  # names are no markup
    with console.capture() as captured:  # written below, so that a closed pipe is ours to handle
        for part in parts:
            console.print(part)
    _write(captured.get())


def emit_text(text: str) -> None:
    """Write text as it is: no wrapping, a newline at the end."""
    _write(text if text.endswith("\n") else f"{text}\n")


def _write(text: str) -> None:
    """Write and flush; what stdout's encoding does not have, and what is no text, appears as an escape.

    Of several processes, the one that writes files writes this as well.
    """
    if not may_write():
        return
    encoding = sys.stdout.encoding or "utf-8"
    sys.stdout.write(text.encode(encoding, "backslashreplace").decode(encoding))
    sys.stdout.flush()
