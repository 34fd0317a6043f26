"""`mst ablate`: the twins of a family, each with several seeds, one run after another; then one table and one plot."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import tyro
from rich.text import Text

from mst.report.ablation import markdown, read_ablation
from mst.runtime import logging
from mst.terminal.output import emit, emit_json
from mst.terminal.parsing import parse_run_words
from mst.workflows.ablation import (
    PLOT,
    TABLE,
    Ablation,
    check_images,
    check_same,
    check_unchanged,
    finish,
    identity,
    labelled_images,
    open_folder,
    planned,
    table_outputs,
    write_table,
)


@dataclass(frozen=True)
class AblateOptions(Ablation):
    """Run the twins of a family one after another and compare them; the same command again goes on."""

    family: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="FAMILY")] = ""
    """strategies, evidence, heads, weight, head, decoder, eligible, probability, share or crops."""
    json: bool = False
    """One JSON object on stdout instead of the table."""


def run(argv: Sequence[str]) -> int:
    """Run the command; return the exit status."""
    parsed = parse_run_words(AblateOptions, argv, prog="mst ablate")
    if parsed is None:
        return 0
    options, words = parsed
    cells, labelled = planned(options, words), labelled_images(options)
    check_same(options)
    for cell in cells:
        check_unchanged(cell)
    outputs = table_outputs(options)
    check_images(cells[0], labelled)
    open_folder(options)
    for number, cell in enumerate(cells, start=1):
        logging.info(f"run {number} of {len(cells)}: {cell.folder}")
        finish(cell, labelled)
    rows = read_ablation({twin: [c.folder for c in cells if c.twin == twin] for twin in {c.twin: 0 for c in cells}})
    write_table(rows, options, outputs)
    root = outputs.folder
    if options.json:
        values = {row.name: {key: list(found) for key, found in row.values.items()} for row in rows}
        emit_json({**identity(options), "out": str(root), "values": values})
    else:
        emit(Text(markdown(rows).rstrip()), Text(f"{root / TABLE}, {root / PLOT}"))
    return 0
