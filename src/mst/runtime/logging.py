"""What a person reads while a command runs: one rich console on stderr, so that stdout stays free for results."""

from __future__ import annotations

from rich.console import Console
from rich.text import Text

console = Console(stderr=True, markup=False, emoji=False)  # names are no markup


def info(message: str) -> None:
    """Print one line, as it is: no markup, no wrapping."""
    console.print(Text(message), soft_wrap=True)


def warn(message: str) -> None:
    """Print one line that starts with `warning:`."""
    console.print(Text.assemble(("warning:", "bold yellow"), " ", message), soft_wrap=True)


def error(message: str) -> None:
    """Print one line that starts with `error:`."""
    console.print(Text.assemble(("error:", "bold red"), " ", message), soft_wrap=True)
