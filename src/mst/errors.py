"""The exceptions a user can meet: each carries one line with the value received, the limit and what to do.

`UsageError` and its children exit with status 2 (the user can fix the call or the input), `RunFailure` with 1.
"""

from __future__ import annotations


class MstError(Exception):
    """Base of every error that the command line prints as one line without a traceback."""

    exit_code = 1
    told = False
    """Whether another process has told the user."""


class UsageError(MstError):
    """A wrong argument, path or combination of settings."""

    exit_code = 2


class ConfigError(UsageError):
    """An unknown key, a wrong type or a value outside its range."""


class DataError(UsageError):
    """Images or labels that cannot be used as asked."""


class CheckpointError(UsageError):
    """A checkpoint or backbone file that is missing, damaged or of another architecture."""


class RunFailure(MstError):
    """Something went wrong while running: disk full, collapse, too many bad steps."""


class Unreachable(RunFailure):
    """A file of many images on another machine cannot be had; it is not taken for an unreadable image."""


class StopTraining(MstError):
    """Raised by a user's callback to end a training on purpose: what was learned is saved, then it is raised again."""


class Interrupted(MstError):
    """A signal stopped the work after everything was saved; exits with 128 + the signal's number, as shells expect."""

    def __init__(self, message: str, signum: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + signum


class MissingExtra(UsageError):
    """An optional dependency is not installed."""

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(f"{package} is not installed: pip install 'mst-pretrain[{extra}]'")
