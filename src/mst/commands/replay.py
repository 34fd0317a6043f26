"""`mst replay`: one step of a training again; which image and which tensor went wrong."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import tyro

from mst.errors import UsageError
from mst.paths import PathText, user_path
from mst.runtime.storage.rundir import RunDir
from mst.terminal.output import emit, emit_json
from mst.terminal.parsing import parse_words


@dataclass(frozen=True)
class ReplayOptions:
    """Compute one step of a training again: which image and which tensor is the first that is not finite."""

    run: Annotated[tyro.conf.Positional[PathText], tyro.conf.arg(metavar="RUN")] = ""
    """Folder of the run; nothing in it is changed. Of `mst evaluate segmentation` --save-model or --out, of detection
    --checkpoints."""
    step: Annotated[tyro.conf.Positional[int], tyro.conf.arg(metavar="STEP")] = 0
    """The step, as bad_steps.jsonl, metrics.jsonl and messages count them: the first is 1."""
    accept_changed_data: bool = False
    """Go on although images were added, removed or replaced: the step may then be of other images."""
    json: bool = False
    """One JSON object on stdout."""


def run(argv: Sequence[str]) -> int:
    """Run the command; return the exit status."""
    options = parse_words(ReplayOptions, argv, prog="mst replay")
    if options is None:
        return 0
    if not options.run or not options.step:
        raise UsageError("name a run and a step, counted from 1: mst replay RUN STEP")

    from mst.workflows.replay.found import describe
    from mst.workflows.replay.run import replay

    found = replay(RunDir(user_path(options.run)), options.step, accept_changed_data=options.accept_changed_data)
    if options.json:
        emit_json(found)
    else:
        emit(*describe(found))
    return 0
