"""`mst quickstart`: make scenes, pre-train on them, measure the network before and after, write the report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mst.paths import PathText
from mst.workflows.quickstart import TITLES, Quickstart, quickstart


@dataclass(frozen=True)
class QuickstartOptions:
    """Embedded data, minutes on two CPU cores: pre-train, measure before and after, write report.html.

    Attributes:
        out: new folder of the run; the scenes go to its subfolder data.
        overwrite: delete the run that --out already holds.
        json: one JSON object on stdout at the end.
    """

    out: PathText = "runs/quickstart"
    overwrite: bool = False
    json: bool = False


def run(argv: Sequence[str]) -> int:
    """Run the command; return the exit status."""
    from mst.terminal.parsing import parse_words

    options = parse_words(QuickstartOptions, argv, prog="mst quickstart")
    if options is None:
        return 0
    done = quickstart(options.out, overwrite=options.overwrite)
    _show(done, json=options.json)
    return 0


def _show(done: Quickstart, *, json: bool) -> None:
    """Write the table and what to do next."""
    from rich.table import Table

    from mst.terminal.output import emit, emit_json

    if json:
        emit_json(
            {
                "run": str(done.root),
                "report": str(done.report),
                "before": dict(done.before),
                "after": dict(done.after),
                "verdicts": dict(done.verdicts),
                "seconds": round(done.seconds, 1),
            }
        )
        return
    table = Table(title=f"{done.root}: {done.seconds / 60:.1f} minutes", title_justify="left")
    for column in ("percent", "untrained", "trained", "gain"):
        table.add_column(column, justify="left" if column == "percent" else "right")
    for task, title in TITLES.items():
        before, after = done.before[task], done.after[task]
        table.add_row(title, f"{before:.1f}", f"{after:.1f}", f"{after - before:+.1f}")
    emit(table, *(f"does it help? {sentence}" for sentence in done.verdicts.values()), *_next_steps(done))


def _next_steps(done: Quickstart) -> list[str]:
    """Return the last lines: what to look at and what to do with images of one's own."""
    return [
        f"open the report:    {done.report}",
        f"use the backbone:   mst embed --backbone {done.root} --data PHOTOS --out features.npz",
        "your own images:    mst plan own-images --data.train PHOTOS",
        "                    mst pretrain own-images --data.train PHOTOS --out runs/mine",
    ]
