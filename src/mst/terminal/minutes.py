"""`--minutes`: how long a run may take, on the command line of every command that plans or starts one."""

from __future__ import annotations

from mst.config.load import with_minutes
from mst.config.schema import RunConfig
from mst.errors import UsageError
from mst.terminal.parsing import Words

MOST_MINUTES = 1e6


def timed(config: RunConfig, minutes: float | None, words: Words) -> RunConfig:
    """Return a run that may take so long.

    Args:
        config: recipe and settings.
        minutes: of the option; None = it was not given.
        words: settings that were given beside it.

    Raises:
        UsageError: no time that a run could take, or beside a length that says something else.
    """
    if minutes is None:
        return config
    if not 0 < minutes <= MOST_MINUTES:
        raise UsageError(f"--minutes {minutes:g}: must be a number above 0, at most {MOST_MINUTES:g}")
    found = with_minutes(config, minutes)
    if found.recipe != "own-images" and "train.epochs" in words:
        raise UsageError(f"--minutes {minutes:g} and --train.epochs {words['train.epochs'][0]}: give one of them")
    return found
