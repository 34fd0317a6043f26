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
from contextlib import suppress
from pathlib import Path

import mst
from mst.errors import Interrupted, MstError, RunFailure, UsageError
from mst.runtime.leaving import end_process, leave_behind
from mst.runtime.names import shown
from mst.runtime.signals import Signalled, ended_by_signals
from mst.terminal.names import COMMANDS

STARTED = {"RANK", "WORLD_SIZE", "LOCAL_RANK", "SLURM_STEP_NUM_TASKS"}
"""Variables without which a process has not been started with others: then nothing is imported to find out."""
SEVERAL = {"pretrain", "finetune", "evaluate", "embed"}
"""Commands whose work several processes can share."""

EXAMPLES = """\
  mst quickstart
  mst plan own-images --data.train PHOTOS
  mst pretrain own-images --data.train PHOTOS --out runs/mine
  mst pretrain --resume runs/mine
  mst evaluate knn --backbone runs/mine --data LABELLED
"""

ADVICE = {
    errno.EMFILE: "raise the limit of open files (ulimit -n) or use fewer workers",
    errno.ENFILE: "the system has no open files left: end other programs",
    errno.ENOSPC: "free space",
    errno.EDQUOT: "free space",
    errno.ENOMEM: "not enough memory: use fewer workers, a smaller batch or smaller images",
    errno.EAGAIN: "the system starts no more processes (ulimit -u): use fewer workers",
    errno.EACCES: "give this user the permission, or name another place",
    errno.EPERM: "give this user the permission, or name another place",
    errno.EROFS: "name another place",
    errno.ENAMETOOLONG: "use a shorter name",
    errno.ELOOP: "its links lead in a circle: mend them",
}
"""What to do about errors of the system that are nobody's bug."""
TOO_LARGE = re.compile(
    "out of memory|can't allocate memory|Storage size calculation overflowed|could not create a (?:primitive|memory)"
)
"""What torch says about a tensor that does not fit."""
LONGEST_LINE = 4000
"""Characters of an error that are shown."""
SIZE = re.compile("[1-9][0-9]{1,4}", re.ASCII)
"""Of a terminal; with 0, as some schedulers set it, tables and messages would be empty."""
INTERRUPTED = 130
"""128 + SIGINT, as shells expect."""
UNREAD = 141
"""128 + SIGPIPE: what shells say of a program whose reader has gone."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: the words after `mst`; None takes the process's own.

    Returns:
        0 on success, 2 for a mistake in the call or the input, 1 for a failure, 128 + the signal's number when a signal
        ended it (130: Ctrl-C), 141 when nobody reads the result any more.
    """
    open_streams()
    status = _status(list(sys.argv[1:] if argv is None else argv))
    end_process(status)
    return status


def _status(words: list[str]) -> int:
    """Run the command line, and turn whatever it raises into one line and an exit status."""
    try:
        with ended_by_signals():
            alone = STARTED.isdisjoint(os.environ) or words[:1] == ["doctor"]  # which says how it was started
            status = _dispatch(words) if alone else _one_of_several(words)
            sys.stdout.flush()
            return status
    except KeyboardInterrupt:
        return _say("interrupted", INTERRUPTED)
    except Signalled as signalled:
        return _say(str(signalled), 128 + signalled.signum)
    except BrokenPipeError:
        return UNREAD
    except Exception as error:
        return _explain(error)
    finally:
        _give_up_dead_streams()


def open_streams() -> None:
    """Open the null device in place of standard streams that are closed (`>&-`).

    Else the next files to be opened would take their numbers, and whatever writes to a stream would write into them.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest number that is free: this one
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115  (for the process's life)


def _give_up_dead_streams() -> None:
    """Give the interpreter streams that it can flush at its end, where what is left cannot be written."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except ValueError:  # closed
            continue
        except OSError:
            with suppress(OSError, ValueError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def check_surroundings() -> None:
    """Refuse a working folder that is gone, and forget a terminal's width that shows nothing.

    Raises:
        UsageError: libraries find themselves, and paths are found, from the working folder.
    """
    try:
        os.getcwd()
    except OSError as error:
        raise UsageError(f"the working folder cannot be used ({error.strerror}): cd to another") from error
    for name in ("COLUMNS", "LINES"):
        if name in os.environ and not SIZE.fullmatch(os.environ[name]):
            del os.environ[name]


def _dispatch(words: list[str]) -> int:
    """Hand over to the command's module."""
    if words[:1] == ["help"] and len(words) > 1:
        words = [*(word for word in words[1:] if word not in {"-h", "--help"}), "--help"]
    if not words or words[0] in {"-h", "--help", "help"}:
        sys.stdout.write(help_text())
        return 0
    if words[0] in {"--version", "-V", "version"}:
        sys.stdout.write(f"mst {mst.__version__}\n")
        return 0
    command = words[0]
    if command not in COMMANDS:
        raise UsageError(f"unknown command {command}{_nearest_command(command)} (all commands: mst --help)")
    check_surroundings()
    run: Callable[[list[str]], int] = importlib.import_module(f"mst.commands.{command}").run
    return run(words[1:])


def _one_of_several(words: list[str]) -> int:
    """Hand over to the command's module in one of several processes, of which the first speaks for all.

    Variables of torchrun or srun may also be those of a process alone.

    Raises:
        BaseException: what ended the command here or elsewhere.
    """
    from mst.parallel.launch import from_environment, joined

    launch = from_environment()
    if launch is None:
        return _dispatch(words)
    if words and words[0] in COMMANDS and words[0] not in SEVERAL:
        raise UsageError(f"mst {words[0]} runs in one process: start it without torchrun or srun")
    from mst.parallel.world import World
    from mst.runtime import logging

    if launch.rank:
        logging.be_quiet()
    with joined(launch):
        world = World.current()
        try:
            status = _dispatch(words)
            world.agree()  # all have ended
        except BaseException as error:
            leave_behind()  # no orderly end: taking groups apart after an error may wait for ever (spd #552)
            if not world.busy:
                told = world.tell(error)
                raise told from error if told is not error else None
            # The others wait in a sum, which only the end of this process ends (torchtitan #1342).
            os._exit(_alone(error, world.name, speak=world.first or not isinstance(error, RunFailure)))
    leave_behind()  # torch's threads may hold tensors, and letting go of one at Python's end aborts (pytorch #179291)
    return status


def _alone(error: BaseException, name: str, *, speak: bool) -> int:
    """Write one line about an error that could not be told to the others; return the exit status."""
    if not speak:
        return 1
    if isinstance(error, KeyboardInterrupt):
        return _say("interrupted", INTERRUPTED)
    status = _explain(error) if isinstance(error, Exception) else 1
    _say(f"that was {name}", status)
    return status


def help_text() -> str:
    """Return the overview; nothing is imported for it."""
    width = max(map(len, COMMANDS)) + 2
    commands = "".join(f"  {name:<{width}}{what}\n" for name, what in COMMANDS.items())
    return (
        "usage: mst COMMAND [...]\n\n"
        "Masked self-supervised pre-training of vision transformers on your own images.\n\n"
        f"commands:\n{commands}\nexamples:\n{EXAMPLES}\n"
        "`mst COMMAND --help` (or `mst help COMMAND`) lists a command's options; --json prints JSON, not tables.\n"
    )


def _nearest_command(word: str) -> str:
    import difflib

    close = difflib.get_close_matches(word, COMMANDS, n=1)
    return f"; did you mean {close[0]}?" if close else ""


def _explain(error: Exception) -> int:
    """Write one line about an error and return the exit status."""
    match error:
        case MstError():
            line = f"{'' if isinstance(error, Interrupted) else 'error: '}{error}"
            return error.exit_code if error.told else _say(line, error.exit_code)
        case OSError() if error.errno is not None:
            return _fail(_system_error(error), 1)
        case RuntimeError() if "can't start new thread" in str(error):
            return _fail("the system starts no more threads (ulimit -u): use fewer --runtime.threads and workers", 1)
        case MemoryError() | RuntimeError() if isinstance(error, MemoryError) or TOO_LARGE.search(str(error)):
            return _fail("not enough memory: use smaller images, a smaller batch or a smaller network", 1)
        case _:  # the last resort: one line, and the whole story kept
            return _report_bug(error)


def _system_error(error: OSError) -> str:
    """Say what the system refused, and what to do."""
    names = [shown(name) for name in (error.filename, error.filename2) if isinstance(name, str | bytes)]
    advice = ADVICE.get(error.errno or 0)
    return f"{' -> '.join(names) or 'cannot read or write'}: {error.strerror}{f'; {advice}' if advice else ''}"


def _fail(message: str, status: int) -> int:
    """Write one line about an error to stderr."""
    return _say(f"error: {message}", status)


def _say(message: str, status: int) -> int:
    """Write one line to stderr, if anybody is there to read."""
    line = " ".join(message.split())
    if len(line) > LONGEST_LINE:  # what was given by mistake may be a whole file
        line = f"{line[: LONGEST_LINE - 500]} [...] {line[-500:]}"
    line = f"mst: {line}\n"
    with suppress(OSError, ValueError):
        encoding = sys.stderr.encoding or "utf-8"
        sys.stderr.write(line.encode(encoding, "backslashreplace").decode(encoding))
        sys.stderr.flush()
    return status


def _report_bug(error: Exception) -> int:
    """Print the trace if asked for, else keep it in a file and say where."""
    if os.environ.get("MST_DEBUG") == "1":
        traceback.print_exception(error)
        return 1
    where = "set MST_DEBUG=1 to see the full trace"
    with (
        suppress(OSError),
        tempfile.NamedTemporaryFile(
            "w", prefix="mst-trace-", suffix=".txt", delete=False, encoding="utf-8", errors="backslashreplace"
        ) as file,
    ):
        traceback.print_exception(error, file=file)
        where = f"the full trace is in {Path(file.name)}, or set MST_DEBUG=1"
    what = f"{type(error).__name__}: {error}".splitlines()[0]
    return _fail(f"{what} (this is a bug; {where})", 1)
