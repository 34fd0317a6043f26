"""Results on stdout: one JSON object, or tables for a person."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from typing import Any

from rich.console import Console, RenderableType

PIPE_WIDTH = 200
"""Columns of a table that does not go to a terminal."""


def emit_json(result: Mapping[str, Any]) -> None:
    """Write one JSON object and a newline."""
    sys.stdout.write(json.dumps(result, indent=2) + "\n")
    sys.stdout.flush()


def emit(*parts: RenderableType) -> None:
    """Write text or tables."""
    width = None if sys.stdout.isatty() else PIPE_WIDTH
    console = Console(file=sys.stdout, highlight=False, markup=False, emoji=False, width=width)  # names are no markup
    with console.capture() as captured:  # written below, so that a closed pipe is ours to handle
        for part in parts:
            console.print(part)
    sys.stdout.write(captured.get())
    sys.stdout.flush()
