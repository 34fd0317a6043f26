"""Commands whose first word names a task, such as `mst evaluate knn`: their overview, and the way to the task."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from mst.config.keys import suggestion
from mst.errors import UsageError
from mst.terminal.output import emit

Task = Callable[[Sequence[str]], int]
"""Runs the words after its own; returns the exit status."""


def run_first_word(argv: Sequence[str], tasks: Mapping[str, Task], *, prog: str, noun: str, options: str) -> int:
    """Hand the words after the first to the task that it names; return the exit status.

    Args:
        argv: the words after the command; none, or `--help`, shows the overview.
        tasks: word -> what it does.
        prog: the command.
        noun: what an unknown task is called.
        options: what every task needs, for the overview.

    Raises:
        UsageError: an unknown task (the nearest is named); whatever the task raises.
    """
    if not argv or argv[0] in {"-h", "--help"}:
        names = "\n".join(f"  {prog} {name} --help" for name in tasks)
        emit(f"usage: {prog} {'|'.join(tasks)} {options}\n\n{names}")
        return 0
    if argv[0] not in tasks:
        raise UsageError(f"unknown {noun} {argv[0]}: use {', '.join(tasks)}{suggestion(argv[0], tasks)}")
    return tasks[argv[0]](argv[1:])
