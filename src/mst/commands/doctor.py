"""`mst doctor`: what this machine, its libraries and its surroundings are good for, and what to mend."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from rich.table import Table

from mst.paths import PathText, user_path
from mst.terminal.output import emit, emit_json
from mst.terminal.parsing import parse_words


@dataclass(frozen=True)
class DoctorArguments:
    """Versions, device, compute type, memory, shared memory, disk, extras, threads, torchrun and SLURM: what to mend.

    Attributes:
        out: where runs would go, to look at its disk.
        json: one JSON object on stdout instead of a table.
    """

    out: PathText = "."
    json: bool = False


def run(argv: Sequence[str]) -> int:
    """Run the command; return the exit status."""
    a = parse_words(DoctorArguments, argv, prog="mst doctor")
    if a is None:
        return 0

    from mst.planning.doctor import examine

    found = examine(user_path(a.out))
    warnings = sum(finding.state == "warn" for finding in found)
    if a.json:
        emit_json({"warnings": warnings, "findings": [asdict(finding) for finding in found]})
        return 0
    table = Table("", "", "", "what to do", box=None, pad_edge=False)
    for finding in found:
        table.add_row(finding.state if finding.state != "note" else "-", finding.about, finding.found, finding.advice)
    emit(table, "", f"{warnings} warning{'s' * (warnings != 1)}" if warnings else "nothing to mend")
    return 0
