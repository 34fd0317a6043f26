"""`mst checkpoint convert`: a checkpoint in several parts (FSDP2) as one that is whole."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import tyro

from mst.errors import UsageError
from mst.paths import PathText, user_path
from mst.runtime.storage.rundir import RunDir
from mst.terminal.output import emit
from mst.terminal.parsing import parse_words


@dataclass(frozen=True)
class CheckpointOptions:
    """Write the newest checkpoint of a run, whose networks were divided over processes, as one with whole tensors."""

    action: Annotated[tyro.conf.Positional[Literal["convert"]], tyro.conf.arg(metavar="convert")] = "convert"
    """What to do."""
    run: Annotated[tyro.conf.Positional[PathText], tyro.conf.arg(metavar="RUN")] = ""
    """Folder of the run; nothing in it is changed."""
    out: Annotated[tyro.conf.Positional[PathText], tyro.conf.arg(metavar="OUT")] = ""
    """Folder for the checkpoint, which is named by its step."""


def run(argv: Sequence[str]) -> int:
    """Run the command; return the exit status."""
    options = parse_words(CheckpointOptions, argv, prog="mst checkpoint")
    if options is None:
        return 0
    if not options.run or not options.out:
        raise UsageError("name a run and a folder: mst checkpoint convert RUN OUT")

    from mst.checkpoint.store import CheckpointStore, convert

    checkpoints = RunDir(user_path(options.run)).checkpoints
    emit(str(convert(CheckpointStore(checkpoints, keep=1), user_path(options.out))))
    return 0
