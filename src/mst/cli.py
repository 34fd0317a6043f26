"""The `mst` command: parse the first word, hand over, turn errors into one line and an exit status."""

from __future__ import annotations

import errno
import importlib
import os
import re
import sys
import tempfile
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

import mst
from mst.errors import Interrupted, MstError, UsageError

COMMANDS = {
    "quickstart": "embedded data, minutes on two CPU cores, ends with report.html",
    "recipes": "list the recipes, or print one complete",
    "plan": "what a run will do: derived values with reasons, steps, time and memory",
    "bench": "speed of a recipe on this machine, and what limits it",
    "pretrain": "train a backbone on unlabelled images",
    "ablate": "twins of a recipe, several seeds each, one table at the end",
    "evaluate": "knn, linear, logistic, retrieval, segmentation, detection or objectness of a backbone",
    "predict": "segmentation or objects of images without labels, by a trained model",
    "finetune": "train a backbone and a classifier on labelled images, or both from scratch",
    "embed": "features and paths of a folder of images",
    "export": "the backbone for other tools",
    "compare": "results of several runs in one table, with differences",
    "report": "one self-contained HTML page about a run",
    "inspect": "scan a folder of images: counts, sizes, modes, unreadable files",
}
"""Command -> what it does; `mst.commands.<command>.run(argv)` does it."""

EXAMPLES = """\
  mst quickstart
  mst plan own-images --data.train PHOTOS
  mst pretrain own-images --data.train PHOTOS --out runs/mine
  mst pretrain --resume runs/mine
  mst evaluate knn --backbone runs/mine --data LABELLED
"""

DISK_REFUSES = {
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EFBIG,
    errno.EIO,
    errno.EMFILE,
}
"""Errors of the file system that are nobody's bug."""
TOO_LARGE = re.compile("out of memory|can't allocate memory|Storage size calculation overflowed")
"""What torch says about a tensor that does not fit."""
INTERRUPTED = 130
"""128 + SIGINT, as shells expect."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: the words after `mst`; None takes the process's own.

    Returns:
        0 on success, 2 for a mistake in the call or the input, 1 for a failure, 130 when interrupted.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        return _dispatch(words)
    except KeyboardInterrupt:
        return _say("interrupted", INTERRUPTED)
    except BrokenPipeError:
        # Whoever read our output has gone; give the interpreter a stdout that it can still flush.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        return _explain(error)


def _dispatch(words: list[str]) -> int:
    """Hand over to the command's module."""
    if not words or words[0] in {"-h", "--help", "help"}:
        sys.stdout.write(help_text())
        return 0
    if words[0] in {"--version", "-V", "version"}:
        sys.stdout.write(f"mst {mst.__version__}\n")
        return 0
    command = words[0]
    if command not in COMMANDS:
        raise UsageError(f"unknown command {command}{_nearest_command(command)} (all commands: mst --help)")
    run: Callable[[list[str]], int] = importlib.import_module(f"mst.commands.{command}").run
    return run(words[1:])


def help_text() -> str:
    """Return the overview; nothing is imported for it."""
    width = max(map(len, COMMANDS)) + 2
    commands = "".join(f"  {name:<{width}}{what}\n" for name, what in COMMANDS.items())
    return (
        "usage: mst COMMAND [...]\n\n"
        "Masked self-supervised pre-training of vision transformers on your own images.\n\n"
        f"commands:\n{commands}\nexamples:\n{EXAMPLES}\n"
        "`mst COMMAND --help` lists a command's options; --json prints one JSON object instead of tables.\n"
    )


def _nearest_command(word: str) -> str:
    import difflib

    close = difflib.get_close_matches(word, COMMANDS, n=1)
    return f"; did you mean {close[0]}?" if close else ""


def _explain(error: Exception) -> int:
    """Write one line about an error and return the exit status."""
    match error:
        case Interrupted():
            return _say(str(error), error.exit_code)
        case MstError():
            return _fail(str(error), error.exit_code)
        case OSError() if error.errno in DISK_REFUSES:
            return _fail(f"{error.filename or 'cannot read or write'}: {error.strerror}", 1)
        case MemoryError() | RuntimeError() if isinstance(error, MemoryError) or TOO_LARGE.search(str(error)):
            return _fail("not enough memory: use smaller images, a smaller batch or a smaller network", 1)
        case _:  # the last resort: one line, and the whole story kept
            return _report_bug(error)


def _fail(message: str, status: int) -> int:
    """Write one line about an error to stderr."""
    return _say(f"error: {message}", status)


def _say(message: str, status: int) -> int:
    """Write one line to stderr."""
    sys.stderr.write(f"mst: {' '.join(message.split())}\n")
    return status


def _report_bug(error: Exception) -> int:
    """Print the trace if asked for, else keep it in a file and say where."""
    if os.environ.get("MST_DEBUG") == "1":
        traceback.print_exception(error)
        return 1
    with tempfile.NamedTemporaryFile("w", prefix="mst-trace-", suffix=".txt", delete=False) as file:
        traceback.print_exception(error, file=file)
    what = f"{type(error).__name__}: {error}".splitlines()[0]
    return _fail(f"{what} (this is a bug; the full trace is in {Path(file.name)}, or set MST_DEBUG=1)", 1)
