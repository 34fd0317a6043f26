"""`mst report`: one self-contained HTML page about a run, and its model card."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import tyro

from mst.errors import UsageError
from mst.paths import PathText, user_path
from mst.report.page import write_report
from mst.runtime.storage.rundir import open_run_dir
from mst.terminal.output import emit, emit_json
from mst.terminal.parsing import parse_words


@dataclass(frozen=True)
class ReportOptions:
    """Write report.html and model_card.md into a run folder, from the files that lie in it."""

    path: Annotated[tyro.conf.Positional[PathText], tyro.conf.arg(metavar="RUN")] = ""
    """The run folder."""
    json: bool = False
    """One JSON object on stdout."""


def run(argv: Sequence[str]) -> int:
    """Run the command; return the exit status."""
    options = parse_words(ReportOptions, argv, prog="mst report")
    if options is None:
        return 0
    if not options.path:
        raise UsageError("name a run folder: mst report RUN")
    page = write_report(open_run_dir(user_path(options.path)))
    if options.json:
        emit_json({"report": str(page), "model_card": str(page.parent / "model_card.md")})
    else:
        emit(f"report: {page}")
    return 0
